"""What mkdocs does beside its plugins: options in code, such as `--set`, are not broken at their hyphens."""

import re
from typing import Any

_CODE = re.compile(r"(<code[^>]*>)(.*?)(</code>)", re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def on_page_content(html: str, **_: Any) -> str:
    """Mark the options in the code of a page; the style sheet keeps each in one line."""
    return _CODE.sub(lambda code: code[1] + _OPTION.sub(r'<span class="option">\g<0></span>', code[2]) + code[3], html)
