"""A bucket as requests need it: where it is, and what proves who asks."""

import base64
import hashlib
from typing import NamedTuple

from trainjob.storage.curl.addressing import Address, address_of
from trainjob.storage.curl.credentials import Credentials
from trainjob.storage.curl.handle import Handle
from trainjob.storage.curl.keys import Keys
from trainjob.storage.curl.request import FilePart, Request
from trainjob.storage.curl.signing import (
    EMPTY_SHA256,
    UNSIGNED,
    Signer,
    encode_path,
    encode_query,
)
from trainjob.storage.settings import StoreSettings


class _Way(NamedTuple):
    """Where requests go, and who signs them for it; replaced as a whole, as `Signer` does."""

    address: Address
    signer: Signer


class Bucket:
    """Turns requests into what is sent to the bucket `name`.

    Raises:
        StoreError: If the bucket or the endpoint cannot be one; nothing is reached yet.
    """

    def __init__(self, name: str, settings: StoreSettings) -> None:
        self._name = name
        self._settings = settings
        self._sends_checksums = settings.checksums == "when_supported"
        self._credentials = Credentials(settings, self.url(""))
        self._way = self._way_to(address_of(name, settings))

    @property
    def endpoint(self) -> str:
        """Where requests go, for messages."""
        return self._way.address.endpoint

    @property
    def is_anonymous(self) -> bool:
        """Whether nothing is signed, since there are no keys."""
        return self._way.signer.is_anonymous

    @property
    def has_checksums(self) -> bool:
        """Whether the store keeps checksums of objects: that of AWS, or who set it up says so."""
        return self._sends_checksums or self._way.address.is_aws

    def url(self, key: str) -> str:
        """Return what messages call an object."""
        return f"s3://{self._name}/{key}"

    def new_handle(self) -> Handle:
        """Return a libcurl handle that trusts what the settings say."""
        return Handle(self._way.address.ca_bundle)

    def prepare(self, handle: Handle, request: Request, tries: int) -> None:
        """Set `handle` up to send `request`, signed as of now."""
        address, signer = self._way
        path = f"{address.path}/{encode_path(request.key)}" if request.key else ""
        path = path or address.path or "/"
        query = encode_query(request.query) if request.query else ""
        headers = request.headers
        if request.method in ("PUT", "POST") and "content-type" not in headers:
            headers = {**headers, "content-type": "application/octet-stream"}
        sha256 = _sha256_of(request)
        if self._sends_checksums and request.method == "PUT" and "uploadId" not in request.query:
            # Not in parts: S3 wants to hear of it when their upload begins.
            checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
            headers = {**headers, "x-amz-checksum-sha256": checksum}
        head = signer.sign(request.method, path, query, headers, sha256)
        if request.body is not None:
            head.append("Expect:")  # else libcurl waits for an answer 100 before large bodies
        url = f"{address.origin}{path}{'?' if query else ''}{query}"
        handle.prepare(request, url, head, tries)
        handle.keys = signer.keys

    def move_to(self, region: str) -> bool:
        """Ask this region from now on, if the settings leave it open; say if they do."""
        if not self._way.address.is_guessed:
            return False
        if region != self._way.address.region:
            self._way = self._way_to(address_of(self._name, self._settings, region))
        return True

    def renew_keys(self, old: Keys | None) -> bool:
        """Look for other keys than `old`, which the store says are over; say if there are any."""
        return self._way.signer.renew(old)

    def _way_to(self, address: Address) -> _Way:
        return _Way(address, Signer(self._credentials, address.region, address.host))


def _sha256_of(request: Request) -> str:
    if request.sha256 is not None:
        return request.sha256
    if isinstance(request.body, FilePart):
        return UNSIGNED
    return hashlib.sha256(request.body).hexdigest() if request.body else EMPTY_SHA256
