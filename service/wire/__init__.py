"""The Gadgetron wire protocol without any input or output: bytes in, messages out, and back.

`Decoder` turns received bytes into messages, `encode` turns a message into the buffers of one ``sendmsg``. Sockets, pipes and files
are one layer above, in `service.transport`.
"""

from service.wire.decoder import Decoder
from service.wire.encoder import encode
from service.wire.errors import EndOfStream, WireError
from service.wire.limits import Limits
from service.wire.messages import (
    Close,
    Config,
    Control,
    ErrorReport,
    Filename,
    HeaderXml,
    Message,
    MessageId,
    Query,
    Response,
)

__all__ = [
    "Close",
    "Config",
    "Control",
    "Decoder",
    "EndOfStream",
    "ErrorReport",
    "Filename",
    "HeaderXml",
    "Limits",
    "Message",
    "MessageId",
    "Query",
    "Response",
    "WireError",
    "encode",
]
