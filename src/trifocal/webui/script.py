"""Sight for the language model of text-generation-webui: Trifocal's extension.

The host finds what it calls by these names; what they do is in ``trifocal.webui.hooks``. Put here by
``trifocal extension install``, with a copy of the package beside it.
"""

import logging
import sys
from pathlib import Path

_here = Path(__file__).resolve().parent
if (_here / "trifocal").is_dir() and str(_here) not in sys.path:
    sys.path.insert(0, str(_here))

try:
    from trifocal.webui.hooks import Extension
except Exception:  # the host must start without it
    logging.getLogger(__name__).exception("No pictures: Trifocal can't be imported. Run trifocal extension install")
    params = {}
else:
    _extension = Extension()
    params = _extension.params
    input_hijack = _extension.input_hijack
    setup = _extension.setup
    ui = _extension.ui
    chat_input_modifier = _extension.chat_input_modifier
    state_modifier = _extension.state_modifier
    input_modifier = _extension.input_modifier
    custom_tokenized_length = _extension.custom_tokenized_length
    tokenizer_modifier = _extension.tokenizer_modifier
    custom_generate_chat_prompt = _extension.custom_generate_chat_prompt
