"""Pull models from a Hugging Face hub: ranged, resumable, checked. Methods block; call them from a thread.

Files are found and their checksums read through huggingface_hub, so tokens, gated repositories and mirrors
(`endpoint`) work as its users know them. A whole file must have the SHA-256 the hub lists. Parts of a file are
fetched only for a manifest that is known already: then every chunk is checked by its content id.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pnode import limits
from p2pnode.durable import sync_folder
from p2pnode.errors import (
    BadModelFile,
    BlobMismatch,
    Cancelled,
    EngineUnavailable,
    ModelUnknown,
    P2PNodeError,
    PeerTimeout,
)
from p2pnode.models.files import data_errors
from p2pnode.models.header import HeaderTruncated, Outline, outline
from p2pnode.models.hub_ref import HubFile, HubReference, choose

if TYPE_CHECKING:
    from types import ModuleType

ENDPOINT_DEFAULT = "https://huggingface.co"
Progress = Callable[[int, int], None]
_SHA256_HEX = 64
_GIT_SHA1_HEX = 40


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository with where its bytes are and what they must hash to."""

    path: str
    size: int
    checksum: str
    """SHA-256, or the git blob id of a file outside large file storage; both in hex."""
    url: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class Hub:
    """One hub; holds no state but its settings."""

    def __init__(self, endpoint: str = ENDPOINT_DEFAULT, *, token: str | None = None) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._token: str | bool = token or False
        self.stop = threading.Event()
        """Set it to end a pull; what came is kept for the next one."""

    # --- finding -----------------------------------------------------------------------------------
    def resolve(self, reference: HubReference) -> list[RemoteFile]:
        """Files of the model, in order; ModelUnknown when the hub has no such thing or does not give it."""
        library = _library()
        with _hub_errors(reference.repo, library):
            api = library.HfApi(endpoint=self.endpoint, token=self._token)
            info = api.model_info(
                reference.repo, revision=reference.revision, files_metadata=True, timeout=limits.HUB_TIMEOUT_S
            )
        listed = [
            HubFile(s.rfilename, int(s.size or 0), str(s.lfs.sha256) if s.lfs else "")
            for s in info.siblings[: limits.HUB_FILES_MAX]
        ]
        return [
            self._remote(reference, file, info.sha or reference.revision)
            for file in choose(reference, listed)
        ]

    def _remote(self, reference: HubReference, file: HubFile, revision: str) -> RemoteFile:
        library = _library()
        url = library.hf_hub_url(reference.repo, file.path, revision=revision, endpoint=self.endpoint)
        checksum = (file.sha256 or self._etag(file, url, library)).lower()
        if len(checksum) not in (_SHA256_HEX, _GIT_SHA1_HEX) or not all(
            c in "0123456789abcdef" for c in checksum
        ):
            raise BadModelFile(
                f"the hub gives no checksum for {file.path}", hint="download it by other means"
            )
        return RemoteFile(file.path, file.size, checksum, url)

    def _etag(self, file: HubFile, url: str, library: ModuleType) -> str:
        """For files whose checksum is not in the listing."""
        with _hub_errors(file.path, library):
            found = library.get_hf_file_metadata(
                url, token=self._token, timeout=limits.HUB_TIMEOUT_S, endpoint=self.endpoint
            )
        if found.size is not None and found.size != file.size:
            raise BadModelFile(f"the hub lists {file.size} bytes for {file.path} and offers {found.size}")
        return str(found.etag or "")

    def outline(self, file: RemoteFile) -> Outline:
        """Header of a file that need not be fetched: what a plan can be made from."""
        size = limits.HUB_HEADER_FIRST_BYTES
        while True:
            data = self.read_range(file, 0, min(size, file.size))
            try:
                return outline(data)
            except HeaderTruncated:
                if size >= min(file.size, limits.HEADER_BYTES_MAX):
                    raise
                size *= 4

    # --- parts -------------------------------------------------------------------------------------
    def read_range(self, file: RemoteFile, offset: int, size: int) -> bytes:
        """Exactly these bytes; ModelUnknown when the hub does not serve ranges."""
        assert 0 < size <= limits.HEADER_BYTES_MAX
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        with self._get(file, headers) as response:
            if response.status_code != 206:
                raise ModelUnknown(f"the hub does not give parts of {file.path}", hint="pull the whole file")
            data = bytearray()
            for piece in response.iter_raw(limits.HUB_READ_BYTES):
                data += piece
                if len(data) > size:
                    break
        if len(data) != size:
            raise BlobMismatch(f"the hub sent {len(data)} bytes of {file.path} where {size} were asked for")
        return bytes(data)

    # --- whole files -------------------------------------------------------------------------------
    def pull(self, files: list[RemoteFile], folder: Path, progress: Progress | None = None) -> list[Path]:
        """Fetch files into a folder; goes on where an earlier pull ended, and gives only checked files."""
        with data_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        total, done = sum(file.size for file in files), 0
        paths = []
        for file in files:
            report = _Report(progress, done, total)
            paths.append(self._pull_one(file, folder / file.name, report))
            done += file.size
        return paths

    def _pull_one(self, file: RemoteFile, path: Path, report: Callable[[int], None]) -> Path:
        if (
            path.is_file()
            and path.stat().st_size == file.size
            and _hash_file(path, file).hexdigest() == file.checksum
        ):
            report(file.size)
            return path
        part = path.with_name(f"{path.name}.{file.checksum[:16]}.part")
        failures = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                self._download(file, part, report)
                break
            except PeerTimeout:
                grown = (part.stat().st_size if part.exists() else 0) > before
                failures = 1 if grown else failures + 1
                if failures >= limits.HUB_ATTEMPTS_MAX:
                    raise
                self.stop.wait(limits.HUB_RETRY_S * failures)
        with data_errors(path):
            part.replace(path)
            sync_folder(path.parent)
        return path

    def _download(self, file: RemoteFile, part: Path, report: Callable[[int], None]) -> None:
        """Append to the part file until it is whole; a part with a wrong hash is deleted."""
        have = part.stat().st_size if part.exists() else 0
        if have > file.size:
            part.unlink()
            have = 0
        hasher = _hash_file(part, file) if have else _hasher(file)
        if have < file.size:
            with self._get(file, {"Range": f"bytes={have}-"} if have else {}) as response:
                if have and response.status_code != 206:
                    hasher, have = _hasher(file), 0
                with data_errors(part), part.open("ab" if have else "wb") as target:
                    for piece in response.iter_raw(limits.HUB_READ_BYTES):
                        if self.stop.is_set():
                            raise Cancelled("the pull was stopped", hint="pull again to go on")
                        have += len(piece)
                        if have > file.size:
                            break
                        target.write(piece)
                        hasher.update(piece)
                        report(have)
                    target.flush()
                    os.fsync(target.fileno())
        if have < file.size:
            raise PeerTimeout(f"the hub ended {file.path} after {have} of {file.size} bytes")
        if have > file.size or hasher.hexdigest() != file.checksum:
            part.unlink()
            raise BlobMismatch(
                f"{file.path} is not what the hub says: its checksum differs", hint="pull it again"
            )

    @contextlib.contextmanager
    def _get(self, file: RemoteFile, headers: dict[str, str]) -> Iterator[Any]:
        library = _library()
        own = library.utils.build_hf_headers(token=self._token)
        own |= {"Accept-Encoding": "identity", **headers}
        with _hub_errors(file.path, library):
            session = library.utils.get_session()
            request = session.stream(
                "GET", file.url, headers=own, timeout=limits.HUB_TIMEOUT_S, follow_redirects=True
            )
            with request as response:
                if response.status_code >= 400:
                    response.read()
                library.utils.hf_raise_for_status(response)
                yield response


@dataclass(frozen=True, slots=True)
class _Report:
    """Progress of one file among several."""

    progress: Progress | None
    before: int
    total: int

    def __call__(self, done: int) -> None:
        if self.progress is not None:
            self.progress(self.before + done, self.total)


def _hasher(file: RemoteFile) -> Any:
    if len(file.checksum) == _SHA256_HEX:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _hash_file(path: Path, file: RemoteFile) -> Any:
    hasher = _hasher(file)
    with data_errors(path), path.open("rb") as source:
        while data := source.read(limits.HUB_READ_BYTES):
            hasher.update(data)
    return hasher


def _library() -> ModuleType:
    """huggingface_hub, an optional dependency; imported late because it is slow."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise EngineUnavailable(
            "pulling from a hub needs the package huggingface_hub", hint="pip install 'p2pnode[hub]'"
        ) from error
    library: ModuleType = huggingface_hub
    return library


@contextlib.contextmanager
def _hub_errors(what: str, library: ModuleType) -> Iterator[None]:
    """The library's errors in our words: unknown, not allowed, or try again."""
    import httpx2

    errors = library.errors
    try:
        yield
    except P2PNodeError:
        raise
    except errors.GatedRepoError as error:
        raise ModelUnknown(
            f"{what} is given to signed-in users only", hint="set HF_TOKEN and accept its terms"
        ) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelUnknown(f"the hub has no {what}", hint="check its name on the hub") from error
    except errors.HFValidationError as error:
        raise ModelUnknown(f"{what} is no name of a repository") from error
    except (errors.HfHubHTTPError, httpx2.HTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise PeerTimeout(
            f"the hub does not answer for {what}: {error}"[:400], hint="try again later"
        ) from error
