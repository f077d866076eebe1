"""A model of text, character by character: learn from plays, then go on with a line that is given.

Reads `tinyshakespeare/input.txt.gz` in the folder that PYRO_AR_DATA names if it is there, otherwise a sonnet.
Run: python examples/shakespeare.py [--steps 300] [--start "ROMEO:"]
"""

import argparse
import math
import os
import time

from pathlib import Path

import torch

import pyro_ar as par

from pyro_ar.data import Alphabet, load_text

SONNET = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance, or nature's changing course, untrimm'd;
But thy eternal summer shall not fade
Nor lose possession of that fair thou ow'st;
Nor shall Death brag thou wander'st in his shade,
When in eternal lines to time thou grow'st;
So long as men can breathe, or eyes can see,
So long lives this, and this gives life to thee.
"""
LENGTH = 64
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300, help="steps of training")
    parser.add_argument("--start", default="So ", help="what the text begins with")
    parser.add_argument("--length", type=int, default=300, help="characters to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plays = Path(os.environ.get("PYRO_AR_DATA", "."), "tinyshakespeare", "input.txt.gz")
    text = load_text(plays) if plays.is_file() else SONNET
    letters = Alphabet.of(text)
    cut = len(text) - max(len(text) // 10, 2 * LENGTH)
    learnt, held_out = text[:cut], text[cut:]

    # No places: the same at every character, for rows of any length.
    family = par.RecurrentAR(LENGTH, 192, par.outputs.Categorical(len(letters), "one-hot"), cell="lstm", width=48, places=False)
    codes, adam = letters.encode(learnt), torch.optim.Adam(family.parameters(), 5e-3)
    begin = time.perf_counter()
    for _ in range(options.steps):
        at = torch.randint(len(codes) - LENGTH, (BATCH, 1)) + torch.arange(LENGTH)
        adam.zero_grad()
        family.training_log_prob(codes[at]).mean().neg().backward()
        adam.step()
    with torch.no_grad():
        rows = letters.windows(held_out, LENGTH)[:200]
        nats = -family().log_prob(rows).mean() / LENGTH
        took = time.perf_counter() - begin
        print(f"{options.steps} steps in {took:.0f} s; {nats:.2f} nats per held-out character, uniform {math.log(len(letters)):.2f}")
        joint = family.of_length(len(options.start) + options.length)()
        seen = torch.arange(joint.event_shape[0]) < len(options.start)
        start = torch.cat((letters.encode(options.start), torch.zeros(options.length, dtype=torch.long)))
        print(letters.decode(joint.given(start, seen).sample()))


if __name__ == "__main__":
    main()
