"""Reads the XML with which S3 says why it refuses a request."""

import re

from trainjob.storage.curl.request import Answer
from trainjob.storage.refusals import Refusal

_TAG = re.compile(rb"<(Code|Message|Region)>([^<]*)</")
_ERROR_START = re.compile(rb"\s*(?:<\?xml[^>]*\?>)?\s*<Error[\s>]")


def refusal_of(answer: Answer) -> Refusal:
    """Return what an answer that is an error says. Anything that is not S3's XML says nothing."""
    found: dict[bytes, str] = {}
    if _ERROR_START.match(answer.body):
        for name, text in _TAG.findall(answer.body):
            found.setdefault(name, text.decode("utf-8", "replace"))
    return Refusal(
        operation=answer.request.operation,
        status=answer.status,
        code=found.get(b"Code", ""),
        message=found.get(b"Message", ""),
        region=found.get(b"Region") or answer.header("x-amz-bucket-region"),
    )


def is_error_in_good_answer(answer: Answer) -> bool:
    """Say whether an answer of status 200 is an error, as that of CompleteMultipartUpload can be.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
    """
    return answer.request.method == "POST" and bool(_ERROR_START.match(answer.body))
