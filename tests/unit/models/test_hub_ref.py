"""Names of models on a hub, and the choice among a repository's files."""

from __future__ import annotations

import pytest

from p2pnode.errors import ModelUnknown, RequestError
from p2pnode.models.hub_ref import HubFile, HubReference, choose, is_reference, parse


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf:a/b", HubReference("a/b")),
        ("hf:a/b:Q4_K_M", HubReference("a/b", quantisation="Q4_K_M")),
        ("hf:a/b/c.gguf", HubReference("a/b", "c.gguf")),
        ("hf:a/b/sub/c-1.5.gguf@v1", HubReference("a/b", "sub/c-1.5.gguf", revision="v1")),
        ("https://hub.example/a/b/resolve/main/c.gguf?download=true", HubReference("a/b", "c.gguf")),
        ("https://hub.example/a/b/blob/v2/x/c.gguf", HubReference("a/b", "x/c.gguf", revision="v2")),
    ],
)
def test_references_are_read(text: str, reference: HubReference) -> None:
    assert is_reference(text)
    assert parse(text) == reference


@pytest.mark.parametrize(
    "text", ["", "a/b", "hf:a", "hf:a/b/c.bin", "hf:a/../c.gguf", "hf:a/b/../../c.gguf", "hf:/b"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse(text)


def _files(*paths: str) -> list[HubFile]:
    return [HubFile(path, 100) for path in paths]


SPLIT = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
FOLDER = [f"Q4_K_M/{name}" for name in SPLIT]


@pytest.mark.parametrize(
    ("reference", "files", "chosen"),
    [
        ("hf:a/b", _files("m.gguf", "README.md", "mmproj-m.gguf"), ["m.gguf"]),
        ("hf:a/b", _files("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf"), ["m-Q4_K_M.gguf"]),
        ("hf:a/b:q8_0", _files("m-Q8_0.gguf", "m-Q4_K_M.gguf"), ["m-Q8_0.gguf"]),
        ("hf:a/b:Q8", _files("m-Q8_0.gguf", "m-Q4_K_M.gguf"), ["m-Q8_0.gguf"]),
        ("hf:a/b:Q4_K_M", _files(*reversed(FOLDER)), FOLDER),
        ("hf:a/b/x/m.gguf", _files("x/m.gguf", "y/m.gguf"), ["x/m.gguf"]),
        ("hf:a/b/m-00002-of-00002.gguf", _files(*SPLIT), SPLIT),
    ],
)
def test_the_right_files_are_chosen(reference: str, files: list[HubFile], chosen: list[str]) -> None:
    assert [file.path for file in choose(parse(reference), files)] == chosen


@pytest.mark.parametrize(
    ("reference", "files"),
    [
        ("hf:a/b", _files("README.md")),
        ("hf:a/b", _files("one.gguf", "two.gguf")),
        ("hf:a/b", _files("a-Q4_K_M.gguf", "b-Q4_K_M.gguf")),
        ("hf:a/b:Q2_K", _files("m-Q8_0.gguf")),
        ("hf:a/b:Q4_K", _files("m-Q4_K_M.gguf", "m-Q4_K_S.gguf")),
        ("hf:a/b:Q4", _files("m-IQ4_XS.gguf")),
        ("hf:a/b/no.gguf", _files("m.gguf")),
        ("hf:a/b", _files("m-00001-of-00002.gguf")),
        ("hf:a/b", [HubFile("m.gguf", 0)]),
    ],
)
def test_what_is_not_clear_is_not_guessed(reference: str, files: list[HubFile]) -> None:
    with pytest.raises(ModelUnknown):
        choose(parse(reference), files)
