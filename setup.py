"""Build configuration; `pip install -e . --no-build-isolation` in an environment that has torch."""

import os
import re
import sys

from setuptools import find_packages, setup

ROOT = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, ROOT)  # build front ends run this file from elsewhere

from setup_extension import cmdclass, extensions  # noqa: E402


def read(*parts):
    """Text of a file of the repository."""
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as stream:
        return stream.read()


def version():
    """`__version__`, read without importing the package: that would need torch and fairseq."""
    return re.search(r'^__version__ = "([^"]+)"$', read("fairseq_hmrnn", "__init__.py"), re.MULTILINE).group(1)


# Official fairseq cannot be imported on Python 3.11 and later; ve-fairseq is its main branch with that repaired.
# torch 2.6 is the first to load data only, unless told otherwise.
FAIRSEQ = [
    've-fairseq==0.12.3; python_version >= "3.11"',
    'torch>=2.6; python_version >= "3.11"',
    'numpy>=1.23,<2; python_version >= "3.11"',
    'fairseq==0.12.2; python_version < "3.11"',
    'torch>=1.12,<2; python_version < "3.11"',
    'numpy>=1.21,<1.24; python_version < "3.11"',
]

setup(
    name="fairseq-hmrnn",
    version=version(),
    description="Hierarchical Multiscale LSTM (HM-LSTM) as a fairseq plugin",
    long_description=read("README.md") if os.path.exists(os.path.join(ROOT, "README.md")) else "",
    long_description_content_type="text/markdown",
    author="The fairseq_hmrnn authors",
    license="MIT",
    python_requires=">=3.8,<3.13",
    packages=find_packages(include=["fairseq_hmrnn", "fairseq_hmrnn.*"]),
    package_data={"fairseq_hmrnn": ["configs/*.yaml", "ops/README.md", "ops/cpu/csrc/*"]},
    install_requires=FAIRSEQ + ["sentencepiece", "tqdm"],
    extras_require={
        "plot": ["matplotlib>=3.6"],
        "gpu": ['triton; platform_system == "Linux"'],
        "dev": ["pytest>=7", "pytest-xdist>=3.2", "hypothesis", "ruff", "matplotlib>=3.6", "tensorboardX", "ninja"],
    },
    ext_modules=extensions(),
    cmdclass=cmdclass(),
    zip_safe=False,
)
