"""A store that is asked to find checksums of what comes in parts; its bucket is ``bucket``."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.core.storage.scripted_store import Asked, Reply, error
from trainjob.storage.curl.told import CRC64, new_digest

ASKED = "x-amz-checksum-algorithm"
KIND = "x-amz-checksum-type"
_CRC = f"x-amz-checksum-{CRC64}"
_MODE = "x-amz-checksum-mode"


def crc64(data: bytes) -> str:
    digest = new_digest(CRC64)
    digest.update(data)
    return base64.b64encode(bytes.fromhex(digest.hexdigest())).decode()


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


@dataclass
class Upload:
    """An upload in parts; `how` is what was said of checksums when it began."""

    how: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Made:
    """An object; `crc64` is empty where it has none that is told."""

    data: bytes
    etag: str
    crc64: str = ""


@dataclass
class ChecksumStore:
    """What a test may want of it.

    Attributes:
        has_md5s: Its ETags are those of S3, and not as under a key of a key service.
        refuses: Its answer to an upload with a checksum of which it is told none.
        where: To what it answers so: to "begin", a "part", or "complete".
        begins: What it says of checksums when an upload begins; None: what was asked.
        tells: Of what it tells the checksum: a "part", the "whole".
        tells_more: Headers of its answer to a HEAD that asks for checksums.
        spoils: It finds the checksum of other bytes.
        damages: The part that it keeps with a flipped bit, in the first upload.
        has_no_etag: It tells no ETag of the whole.
        loses: It says that it knows of no upload when it is asked to complete it,
        makes: after it has made the object, or not.
    """

    has_md5s: bool = False
    refuses: Reply | None = None
    where: str = "begin"
    begins: Mapping[str, str] | None = None
    tells: tuple[str, ...] = ("part", "whole")
    tells_more: Mapping[str, str] = field(default_factory=dict)
    spoils: bool = False
    damages: int = 0
    has_no_etag: bool = False
    loses: bool = False
    makes: bool = True
    objects: dict[str, Made] = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)
    aborted: set[int] = field(default_factory=set)

    def __call__(self, asked: Asked) -> Reply:
        key, _, query = asked.path.removeprefix("/bucket/").partition("?")
        if "list-type" in query:
            return Reply(body=self._listed().encode())
        if asked.method == "POST":
            return self._begin(asked) if "uploads" in query else self._complete(key, asked)
        if asked.method == "PUT" and "partNumber" in query:
            return self._part(asked)
        if asked.method == "PUT":
            etag = _md5(asked.body).hex() if self.has_md5s else f"{len(self.objects)}-0"
            self.objects[key] = Made(asked.body, f'"{etag}"')
            return Reply()
        if asked.method == "DELETE":
            if "uploadId" in query:
                self.aborted.add(_id_in(asked))
            else:
                self.objects.pop(key, None)
            return Reply(204)
        return self._give(key, asked)

    def _begin(self, asked: Asked) -> Reply:
        how = {name: value for name, value in asked.headers.items() if "checksum" in name}
        self.uploads.append(Upload(how))
        if how and self.refuses and self.where == "begin":
            return self.refuses
        name = "InitiateMultipartUploadResult"
        body = f"<{name}><UploadId>{len(self.uploads) - 1}</UploadId></{name}>"
        said = how if self.begins is None else self.begins
        return Reply(body=body.encode(), headers=said if how else {})

    def _part(self, asked: Asked) -> Reply:
        number, upload = int(re.findall(r"partNumber=(\d+)", asked.path)[0]), _id_in(asked)
        how = self.uploads[upload].how
        if how and self.refuses and self.where == "part":
            return self.refuses
        data = asked.body
        if number == self.damages and not self.uploads[upload].parts.get(number) and not upload:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.uploads[upload].parts[number] = data
        etag = {"ETag": f'"{_md5(data if self.has_md5s else b"key" + data).hex()}"'}
        return Reply(headers=etag | ({_CRC: crc64(data)} if how and "part" in self.tells else {}))

    def _complete(self, key: str, asked: Asked) -> Reply:
        # Who is told a checksum may tell it again without having found it.
        assert not any("checksum" in name for name in asked.headers)
        assert b"Checksum" not in asked.body
        upload = self.uploads[_id_in(asked)]
        if upload.how and self.refuses and self.where == "complete":
            return self.refuses
        parts = [upload.parts[number] for number in sorted(upload.parts)]
        data = b"".join(parts)
        md5 = _md5(b"".join(map(_md5, parts)) + (b"" if self.has_md5s else b"key")).hex()
        is_told = upload.how and "whole" in self.tells
        checksum = crc64(data + (b"more" if self.spoils else b"")) if is_told else ""
        if self.makes:
            etag = "" if self.has_no_etag else f'"{md5}-{len(parts)}"'
            self.objects[key] = Made(data, etag, checksum)
        if self.loses:
            return error(404, "NoSuchUpload")
        made = self.objects[key]
        crc = f"<ChecksumCRC64NVME>{checksum}</ChecksumCRC64NVME>" if checksum else ""
        etag = f"<ETag>{made.etag}</ETag>" if made.etag else ""
        name = "CompleteMultipartUploadResult"
        return Reply(body=f"<{name}>{etag}{crc}</{name}>".encode())

    def _give(self, key: str, asked: Asked) -> Reply:
        if key not in self.objects:
            return error(404, "NoSuchKey")
        made = self.objects[key]
        told = {_CRC: made.crc64, **self.tells_more} if made.crc64 else {}
        headers = {"ETag": made.etag, **(told if _MODE in asked.headers else {})}
        first, last = asked.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")
        data = made.data[int(first) : int(last) + 1 if last else None]
        return Reply(206 if last else 200, data, headers)

    def _listed(self) -> str:
        found = "".join(
            f"<Contents><Key>{key}</Key><ETag>{made.etag}</ETag><Size>{len(made.data)}</Size>"
            "</Contents>"
            for key, made in sorted(self.objects.items())
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"


def _id_in(asked: Asked) -> int:
    return int(re.findall(r"uploadId=(\d+)", asked.path)[0])
