"""Protobuf's wire format, written by hand (protobuf.dev/programming-guides/encoding)."""

VARINT, FIXED64, BYTES, START, END, FIXED32 = range(6)


def varint(value, size=1):
    """With zeros on top, as no serializer writes it, when it takes less than `size` bytes."""
    out = bytearray()
    while value >= 0x80 or len(out) + 1 < size:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def tag(number, kind, size=1):
    return varint(number << 3 | kind, size)


def number(field, value, size=1):
    return tag(field, VARINT) + varint(value, size)


def delimited(field, content, size=1):
    """A string, bytes, a message or packed numbers; `size`: bytes of the length."""
    return tag(field, BYTES) + varint(len(content), size) + content


def group(field, content):
    return tag(field, START) + content + tag(field, END)


def fields_of(message):
    """The bytes of each field of a message, one by one, as generated code writes them.

    A list's entries are one by one too, but for packed numbers.
    """
    parts = []
    for descriptor, value in message.ListFields():
        repeated = descriptor.label == descriptor.LABEL_REPEATED
        entries = [[entry] for entry in value] if repeated and descriptor.message_type else [value]
        for entry in entries:
            one = type(message)()
            if repeated:
                getattr(one, descriptor.name).extend(entry)
            elif descriptor.message_type:
                getattr(one, descriptor.name).CopyFrom(entry)
            else:
                setattr(one, descriptor.name, entry)
            parts.append(one.SerializeToString())
    return parts


# What no version of ours has, with numbers inside that lead to tensors elsewhere.
UNKNOWN = (number(100, 1) + tag(101, FIXED32) + b"abcd" + tag(102, FIXED64) + b"abcdefgh" +
           delimited(103, b"unknown") +
           group(104, delimited(15, b"not a tensor's") + group(15, delimited(15, b"") + number(1, 2))) +
           group(105, number(1, 1) + number(1, 1) + delimited(15, b"nor this")))
