"""Pages of listings: the quick way to read one says what the parser says, or says nothing."""

from xml.parsers import expat

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainjob.storage.curl.page import Found, Page, any_page, plain_page, read_page

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
ROOT = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
END = "</ListBucketResult>"
ITEM = "<Contents><Key>{}</Key><ETag>&quot;e&quot;</ETag><Size>1</Size></Contents>".format

# As AWS, SeaweedFS, MinIO and OBS write them.
FORMS = [
    "<Contents><Key>x/k</Key><LastModified>2026-11-21T16:50:00.000Z</LastModified>"
    "<ETag>&quot;{}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
    "<ChecksumType>FULL_OBJECT</ChecksumType><Size>12</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>",
    "<Contents><Key>x/k</Key><LastModified>2026</LastModified><ETag>&#34;{}&#34;</ETag>"
    "<Size>12</Size><Owner><ID>me</ID><DisplayName>me</DisplayName></Owner>"
    "<StorageClass>STANDARD</StorageClass></Contents>",
    '\n  <Contents>\n    <Key>x/k</Key>\n    <ETag>"{}"</ETag>\n    <Size>12</Size>\n  '
    "<Type>Normal</Type>\r\n  </Contents>\n",
]

PIECES = [
    *(HEAD, ROOT, "<ListBucketResult>", END, ITEM("a"), ITEM("a%20b+c"), ITEM("a/")),
    *("<Contents>", "</Contents>", "<Key>", "</Key>", "<Key>k</Key>", "<Key/>", "<Size>2</Size>"),
    *("<Size> 3</Size>", "<Size>x</Size>", "<ETag>e</ETag>", "<ETag>&lt;</ETag>", "<Owner>"),
    *("</Owner>", "<ID>1</ID>", "<Owner><ID>1</ID></Owner>", "<Owner><Key>o</Key></Owner>"),
    *("<EncodingType>url</EncodingType>", "<IsTruncated>true</IsTruncated>", "<IsTruncated>true"),
    *("</IsTruncated>", "<NextContinuationToken>t</NextContinuationToken>", "<Name>b</Name>"),
    *("<Prefix>a&amp;b</Prefix>", "<Prefix>what?</Prefix>", "<!--", "-->", "<![CDATA[", "]]>"),
    *("<!DOCTYPE x>", "<?", "?>", "<Name a='", "'>", '"', ">", "<", "&", "&#34;", " ", "\n", "\r"),
    *("text", "é", "\x00", "\x0b", "\x7f", "<Other>", "</Other>", "<Other/>", "<n:Key>k</n:Key>"),
]
PLAIN = st.lists(st.sampled_from([ITEM("a"), ITEM("b%2Bc"), *FORMS]), max_size=3).map("".join)
SPOILED = st.tuples(PLAIN, st.lists(st.sampled_from(PIECES), max_size=2), PLAIN).map(
    lambda parts: ROOT + parts[0] + "".join(parts[1]) + parts[2] + END
)


def said_by_the_parser(body: bytes) -> Page | None:
    try:
        return any_page(body)
    except (expat.ExpatError, LookupError, ValueError):
        return None


@settings(deadline=None)  # a busy machine may be slow
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | SPOILED)
@example(ROOT + "<IsTruncated>true" + ITEM("a") + "</IsTruncated>" + END)
@example(ROOT + "<!--" + ITEM("a") + "-->" + END)
@example(ROOT + ITEM("a") + "<![CDATA[" + ITEM("b") + "]]>" + END)
@example(ROOT + ITEM("a") + "<NextContinuationToken>t</NextContinuationToken>" + ITEM("b") + END)
@example(ROOT + END + ITEM("a") + END)
@example(ROOT + "<Contents/>" + ITEM("a") + END)
@example(ROOT + ITEM("a") + "<Contents>t</Contents>" + END)
def test_the_quick_way_says_what_the_parser_says_or_nothing(text):
    body = text.encode()

    quick = plain_page(body)

    assert quick is None or quick == said_by_the_parser(body)


@settings(deadline=None)
@given(st.binary(max_size=6), st.integers(0, 400), st.integers(0, 6))
def test_a_page_that_is_damaged_anywhere_is_read_by_the_parser_or_the_same(damage, start, length):
    whole = (HEAD + ROOT + ITEM("a") + FORMS[0] + ITEM("b") + END).encode()
    body = whole[:start] + damage + whole[start + length :]

    quick = plain_page(body)

    assert quick is None or quick == said_by_the_parser(body)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", ["", HEAD])
def test_pages_as_stores_write_them_are_read_the_quick_way(form, head):
    about = "<Name>b</Name><IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>"
    after = "<NextContinuationToken>t+/=</NextContinuationToken>"
    body = f"{head}{ROOT}{about}{form.format('e') * 3}{after}{END}".encode()

    found = [Found("x/k", 12, '"e"')] * 3
    assert plain_page(body) == any_page(body) == Page(found, "t+/=", is_truncated=True)


def test_a_page_that_is_not_plain_is_read_all_the_same():
    body = f"{ROOT}<!-- -->{ITEM('x/&amp;')}{ITEM('x/é')}{END}".encode()

    assert plain_page(body) is None
    page = read_page(body, "x/")
    assert page is not None
    assert [item.key for item in page.found] == ["x/&", "x/é"]


@pytest.mark.parametrize(
    "text",
    ["", "<html/>", ROOT, ROOT + ITEM("y/k") + END, HEAD.replace("UTF-8", "?") + ROOT + END],
)
def test_what_is_no_page_of_the_prefix_is_none(text):
    assert read_page(text.encode(), "x/") is None
