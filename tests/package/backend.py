"""A build backend that needs no other package, so that the test needs no network."""

import zipfile
from pathlib import Path

NAME = "median_baseline-1.0"
FILES = {
    f"{NAME}.dist-info/METADATA": "Metadata-Version: 2.1\nName: median-baseline\nVersion: 1.0\n",
    f"{NAME}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: backend\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{NAME}.dist-info/entry_points.txt": "[grpokit.stages]\nmedian_baseline = median_baseline\n",
}


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    files = FILES | {"median_baseline.py": Path("median_baseline.py").read_text(encoding="utf-8")}
    files[f"{NAME}.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files) + f"{NAME}.dist-info/RECORD,,\n"
    with zipfile.ZipFile(Path(wheel_directory) / f"{NAME}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return f"{NAME}-py3-none-any.whl"
