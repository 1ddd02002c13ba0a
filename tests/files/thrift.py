"""Thrift's compact protocol, as far as Parquet uses it: bytes to trees, and trees, changed or absurd, to bytes.

A struct is a dict of number → (type, value), a list a pair (type of its elements, values).
"""

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


def varint(number):
    number &= 2**64 - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self):
        number = shift = 0
        while True:
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    def value(self, kind):
        if kind in (TRUE, FALSE, BYTE):
            return kind == TRUE if kind != BYTE else self.take(1)
        if kind in (I16, I32, I64):
            number = self.varint()
            return number >> 1 ^ -(number & 1)
        if kind == DOUBLE:
            return self.take(8)
        if kind == BINARY:
            return self.take(self.varint())
        if kind == STRUCT:
            return self.struct()
        (head,) = self.take(1)
        count = head >> 4 if head >> 4 < 15 else self.varint()
        return head & 15, [self.value(head & 15) for _ in range(count)]

    def struct(self):
        found, number = {}, 0
        while head := self.take(1)[0]:
            number = number + (head >> 4) if head >> 4 else self.value(I16)
            found[number] = (head & 15, self.value(head & 15))
        return found


def written(kind, value):
    """A value as bytes; bytes in place of a list or a struct are taken as they are."""
    if kind in (TRUE, FALSE):
        return b""
    if kind in (I16, I32, I64):
        return varint(value << 1 ^ value >> 63)
    if kind == BINARY:
        return varint(len(value)) + value
    if isinstance(value, bytes):
        return value
    if kind == STRUCT:
        out, last = b"", 0
        for number, (of, content) in sorted(value.items()):
            out += bytes([(number - last) << 4 | of]) + written(of, content)
            last = number
        return out + b"\0"
    of, values = value
    head = bytes([len(values) << 4 | of]) if len(values) < 15 else bytes([0xF0 | of]) + varint(len(values))
    return head + b"".join(written(of, content) for content in values)


def changed(tree, path, value):
    """The struct with another value at a path of field numbers and places in lists."""
    number, *rest = path
    of, content = tree[number]
    if rest and of == LIST:
        at, *rest = rest
        values = list(content[1])
        values[at] = changed(values[at], rest, value) if rest else value
        content = (content[0], values)
    else:
        content = changed(content, rest, value) if rest else value
    return tree | {number: (of, content)}
