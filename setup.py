"""Which packages a wheel has; everything else is in pyproject.toml.

`configs` and `scripts` stand at the top of a checkout and inside `posebh_jax` when installed, so that no other project
finds packages of such common names.
"""

from setuptools import find_packages, setup

packages = find_packages(include=["posebh_jax*", "boir_jax*", "data_pipelines*", "pose_common*"])
setup(
    packages=[*packages, "posebh_jax.configs", "posebh_jax.scripts"],
    package_dir={"posebh_jax.configs": "configs", "posebh_jax.scripts": "scripts"},
)
