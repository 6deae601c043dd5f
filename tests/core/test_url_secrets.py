"""What is hidden of urls that are shown, and what is not."""

import pytest

from trainjob.url_secrets import without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x", "https://***@host/x"),
        ("x://me:pa/ss'w\"ord@host/x", "x://***@host/x"),
        ("az://c/d?sig=abc", "az://c/d?***"),
        ("fatal: no 'https://me:pass@host/x?a=b' here", "fatal: no 'https://***@host/x?***' here"),
        ("loss=(?P<value>[0-9]+)", "loss=(?P<value>[0-9]+)"),
        ("is it? no", "is it? no"),
        ("s3://bucket/prefix/", "s3://bucket/prefix/"),
    ],
)
def test_logins_and_queries_of_urls_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
