#!/usr/bin/env python3
"""Makes an evaluation file for bda_perplexity from a text.

    make_eval.py TOKENIZER TEXT.txt EVAL.safetensors [--length 512] [--windows N] [--begin TOKEN]

TOKENIZER is a model folder with a Hugging Face tokenizer, or its tokenizer.json. The text is
tokenized as a whole and cut into windows of `length` tokens, each measured as a sequence of its
own; the last, incomplete one is dropped. With --begin (a token such as "<s>") every window starts
with that token and has one less of the text.

Needs the package `tokenizers` (pip install tokenizers) and nothing else.
"""

import argparse
import array
import json
import pathlib
import struct
import sys


def write_tokens(path, windows, length):
    """A safetensors file with `tokens`, I32 [windows, length]: header size, header, values."""
    values = array.array("i", (token for window in windows for token in window))
    if values.itemsize != 4:
        sys.exit("this Python's int array is not 32 bits wide")
    if sys.byteorder == "big":
        values.byteswap()
    data = values.tobytes()
    header = json.dumps(
        {
            "tokens": {
                "dtype": "I32",
                "shape": [len(windows), length],
                "data_offsets": [0, len(data)],
            }
        }
    ).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the values to 8 bytes
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def cut_windows(tokens, length, begin):
    """Consecutive windows of `length` tokens, each behind the tokens of `begin`."""
    fresh = length - len(begin)
    return [
        begin + tokens[start : start + fresh]
        for start in range(0, len(tokens) - fresh + 1, fresh)
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--windows", type=int, help="at most so many windows")
    parser.add_argument("--begin", help="a token that every window starts with")
    args = parser.parse_args()
    if args.length < 2:
        parser.error(f"--length: expected at least 2, got {args.length}")

    from tokenizers import Tokenizer

    folder = args.tokenizer
    tokenizer = Tokenizer.from_file(
        str(folder / "tokenizer.json" if folder.is_dir() else folder)
    )
    begin = []
    if args.begin is not None:
        begin = [tokenizer.token_to_id(args.begin)]
        if begin == [None]:
            sys.exit(f"--begin: expected a token of the tokenizer, got {args.begin!r}")
    text = args.text.read_text(encoding="utf-8")
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    windows = cut_windows(tokens, args.length, begin)[: args.windows]
    if not windows:
        sys.exit(f"{args.text}: expected at least {args.length} tokens, got {len(tokens)}")
    write_tokens(args.output, windows, args.length)
    print(f"{args.output}: {len(windows)} windows of {args.length} tokens")


if __name__ == "__main__":
    main()
