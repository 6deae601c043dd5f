"""Where trainjob writes what it says of an output, beside the files of the script."""

OWN_FOLDER = "_trainjob/"

RECEIPT = f"{OWN_FOLDER}receipt.json"
"""The proof of all files; see `trainjob.storage.receipt`."""

SUCCESS = "_SUCCESS"
"""Empty, and written last: who sees it sees a complete result."""
