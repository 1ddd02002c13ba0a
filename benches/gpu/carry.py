"""Builds the folder that `run.py` takes to a machine where nothing can be fetched: `make carry` writes .carried/.

    site/           our package with its compiled core, Liger and fla as PyPI has them, each with its licence
    cubins/         row_kernel for sm_90 and two vocabularies, its arguments beside it, compiled by this Triton
    manifest.json   commit and versions

Nothing of it is committed.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLA = "fla-core==0.6.0"
VOCABULARIES = (151_936, 128_256)
ARCH = 90
MOST_MIB = 60


def main():
    """Builds the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / ".carried")
    parser.add_argument("--only-cubins", action="store_true", help="compile, and leave the packages out")
    typed = parser.parse_args()
    if not typed.only_cubins:
        shutil.rmtree(typed.out, ignore_errors=True)
        packages(typed.out / "site")
    versions = cubins(typed.out / "cubins")
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    manifest = {"commit": commit, "liger-kernel": liger().split("==")[1], "fla-core": FLA.split("==")[1]} | versions
    (typed.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in typed.out.rglob("*") if path.is_file()) / 2**20
    if size > MOST_MIB:
        raise SystemExit(f"{typed.out} has {size:.0f} MiB, and {MOST_MIB} can be carried")
    print(f"{typed.out}: {size:.1f} MiB, {manifest}")


def liger():
    """Liger as the other comparisons pin it."""
    return re.search(r"^liger-kernel==\S+", (ROOT / "requirements-peers.txt").read_text(), re.MULTILINE)[0]


def packages(site):
    """Our package as it is in the checkout, and the rivals' from PyPI."""
    site.mkdir(parents=True)
    # Links become files: the kernels are beside the package.
    shutil.copytree(
        ROOT / "python" / "grpokit", site / "grpokit", ignore=shutil.ignore_patterns("__pycache__", "*.pyi")
    )
    shutil.copy(ROOT / "LICENSE", site / "grpokit" / "LICENSE")
    uv = shutil.which("uv", path=f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}")
    install = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", site, "--no-deps"]
    subprocess.run([*install, liger(), FLA], check=True)


def cubins(folder):
    """Compiles `row_kernel` as it is launched for the clip at token level without an entropy term."""
    sys.path[0] = str(ROOT / "benches")
    sys.path.insert(1, str(ROOT / "python"))
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="carry-"))
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    # The assembler of CUDA 12.9: a driver that is a little older than Triton takes its machine code.
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    os.environ.setdefault("TRITON_PTXAS_BLACKWELL_PATH", str(ptxas))
    folder.mkdir(parents=True, exist_ok=True)
    for V in VOCABULARIES:
        about, code = compiled(V)
        name = f"row_kernel_{V}_sm_{ARCH}"
        (folder / f"{name}.cubin").write_bytes(code)
        (folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return {"triton of the cubins": triton.__version__}


def compiled(V):
    """The machine code of one launch, and what a launcher must know of it."""
    import torch
    import triton

    from gpu.cases import Case, Data
    from gpu.cubin import leaves, parameters_of
    from gpu.providers import batch_of, recipe
    from grpokit import one_pass

    data = Data(Case(2, 2, V), "cpu")
    target = triton.backends.compiler.GPUTarget("cuda", ARCH, 32)
    with recorded(target) as launches:
        one_pass.loss(data.logits, batch_of(data), recipe("token"), hold=True)
    kernel, signature, constants, attributes, options = next(x for x in launches if x[0].__name__ == "row_kernel")
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    found = triton.compile(source, target=target, options=options)
    parameters = []
    for i, (name, kind) in enumerate(signature.items()):
        for _, at, inner in leaves(name, (i,), kind):
            aligned = ["tt.divisibility", 16] in attributes.get(at, [])
            entry = {"name": name, "at": at, "type": inner, "aligned": aligned}
            if inner == "constexpr":
                value = constants[at]
                entry["value"] = list(value) if isinstance(value, tuple) else value
            parameters.append(entry)
    metadata = found.metadata
    assert (metadata.global_scratch_size, metadata.profile_scratch_size) == (0, 0)
    about = {name: getattr(metadata, name) for name in ("name", "shared", "num_warps", "num_ctas")}
    about |= {"triton": triton.__version__, "torch": torch.__version__, "vocabulary": V}
    return about | {"parameters": parameters, "ptx": parameters_of(found.asm["ptx"])}, found.asm["cubin"]


@contextlib.contextmanager
def recorded(target):
    """The launches that are made meanwhile, as the JIT would compile them for `target`: none is started."""
    import triton
    from triton.runtime import jit

    launches, backend = [], triton.compiler.make_backend(target)

    def run(kernel, *args, **options):
        del options["grid"], options["warmup"]
        bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, options = bind(*args, **options, debug=False)
        parsed, *packed = kernel._pack_args(backend, options, bound, specialization, options)
        launches.append((kernel, *packed, parsed.__dict__))

    before = jit.JITFunction.run
    jit.JITFunction.run = run
    try:
        yield launches
    finally:
        jit.JITFunction.run = before


if __name__ == "__main__":
    main()
