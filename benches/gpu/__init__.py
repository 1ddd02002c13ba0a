"""The losses on a GPU, ours and the rivals': `python benches/gpu/run.py`."""
