"""Access keys for S3: those of the settings, else what botocore's usual chain finds.

The chain is the environment, shared files, single sign-on, roles of containers and machines. What
it finds is renewed by botocore when it is about to expire.
"""

import time
from typing import Any

from trainjob.storage.curl import chain
from trainjob.storage.curl.keys import Keys
from trainjob.storage.key_failures import ChainError, no_keys, refuse_odd
from trainjob.storage.refusals import no_credentials
from trainjob.storage.settings import StoreSettings

_KEEP_S = 10.0
"""How long keys are used without asking the chain, which renews them minutes before they end."""


class Credentials:
    """Where the keys for the store of `settings` come from. `url` is what messages name."""

    def __init__(self, settings: StoreSettings, url: str) -> None:
        self._settings = settings
        self._url = url
        self._chain: Any = None
        self._keys: Keys | None = None
        self._ask_again = 0.0

    def keys(self) -> Keys | None:
        """Return the keys to sign with now; None if there are none, so that nothing is signed.

        Raises:
            StoreDenied: If there is only a part of them, or they cannot be had from this machine.
            StoreUnavailable: If what should give them fails, which may pass.
        """
        if time.monotonic() >= self._ask_again:
            keys = self._explicit() if self._is_explicit else self._found()
            if keys is not None:
                refuse_odd(keys.access_key, keys.token, self._url)
            self._keys = keys
            self._ask_again = time.monotonic() + _KEEP_S
        return self._keys

    def renew(self, old: Keys | None) -> bool:
        """Look for other keys than `old`, which the store says are over; say if there are any.

        Of the many requests that were sent with the old ones, the first has the chain asked.
        """
        if self.keys() == old:
            self._chain = None
            self._ask_again = 0.0
        return self.keys() != old

    @property
    def _is_explicit(self) -> bool:
        return bool(self._settings.access_key or self._settings.secret_key)

    def _explicit(self) -> Keys:
        key, secret = self._settings.access_key, self._settings.secret_key
        if not key or not secret:
            raise no_credentials(self._url)
        return Keys(key, secret, self._settings.session_token)

    def _found(self) -> Keys | None:
        if (keys := chain.keys_of_environment()) is not None:
            return keys
        try:
            if self._chain is None:
                self._chain = chain.credentials()
            return chain.keys_of(self._chain) if self._chain else None
        except ChainError as error:
            raise no_keys(error.__cause__, self._url) from error
