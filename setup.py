"""What is in the package, what it needs, and the extras that bring the rest.

Metadata is in pyproject.toml.
"""

from setuptools import find_packages, setup

# `configs/` lies where users look for it, and is a part of the package when that is installed.
CONFIGS = "kaizen_dist.configs"

# One DALI wheel a CUDA version; each of them has the CPU pipeline too.
DALI = {"dali-cuda13": ["nvidia-dali-cuda130>=2.0"], "dali-cuda12": ["nvidia-dali-cuda120>=2.0"]}
DEEPSPEED = ["deepspeed>=0.19"]
MLFLOW = ["mlflow>=2.14"]
ONNX = ["onnx>=1.18", "onnxscript>=0.5.3"]
# Streams at http(s):// and s3:// URLs.
REMOTE = ["aiohttp>=3.9", "s3fs>=2024.2"]
SLURM = ["submitit>=1.5"]
# table:FILE.parquet and parquet:PATTERN; sweep.parquet beside sweep.csv.
PARQUET = ["pyarrow>=15"]
# hf:NAME; older versions run code of the data sets.
HF = ["datasets>=3"]
# model.backbone=timm/NAME; older versions have no DINOv3.
TIMM = ["timm>=1.0.20"]
TEST = [
    "aiohttp>=3.9",
    "hypothesis>=6.100",
    "lightly>=1.5",
    "mypy>=1.13",
    *ONNX,
    "onnxruntime>=1.20",
    *PARQUET,
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "ruff>=0.9",
    *TIMM,
    "types-PyYAML",
]
WANDB = ["wandb>=0.17"]

setup(
    packages=[*find_packages(include=["kaizen_dist*"]), CONFIGS],
    package_dir={CONFIGS: "configs"},
    package_data={
        CONFIGS: ["*.yaml", "*/*.yaml"],
        "kaizen_dist": ["py.typed"],
        "kaizen_dist.models": ["templates/*"],
        "kaizen_dist.report": ["templates/*"],
    },
    install_requires=[
        "fsspec>=2024.2",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "packaging>=23",
        "pillow>=10",
        "pydantic>=2.7",
        "pyyaml>=6",
        "rich>=13",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "tensorboard>=2.16",
        "torch>=2.11",
        "torchvision>=0.26",
        "typer>=0.15",
        "typing-extensions>=4.5",
        "webdataset>=0.2.111",
    ],
    extras_require={
        **DALI,
        "deepspeed": DEEPSPEED,
        "hf": HF,
        "mlflow": MLFLOW,
        "onnx": ONNX,
        "parquet": PARQUET,
        "remote": REMOTE,
        "slurm": SLURM,
        "sweep": PARQUET,
        "test": TEST,
        "timm": TIMM,
        "wandb": WANDB,
        "all": DALI["dali-cuda13"]
        + DEEPSPEED
        + HF
        + MLFLOW
        + ONNX
        + REMOTE
        + SLURM
        + PARQUET
        + TEST
        + TIMM
        + WANDB,
    },
)
