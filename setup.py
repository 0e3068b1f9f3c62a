"""Packaging; the metadata is in pyproject.toml.

The prototxts and the zoo's cards lie at the top of the repository, where people look for them. In a wheel they lie inside the
package, as ``caffetools/_prototxt`` and ``caffetools/_zoo``; ``caffetools.zoo`` finds them in both places.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["caffetools*"]), "caffetools._prototxt", "caffetools._zoo"],
    package_dir={"caffetools._prototxt": "prototxt", "caffetools._zoo": "zoo"},
    package_data={
        "caffetools.proto": ["caffe.proto", "caffe.desc"],
        "caffetools._prototxt": ["*/*.prototxt"],
        "caffetools._zoo": ["*.yaml", "*.txt"],
    },
)
