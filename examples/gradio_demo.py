"""A hosted demo of best of N: Gradio in an environment of its own, `dcmpl serve` behind it.

dcmpl serve                                    # in one environment
pip install dcmpl-agiqa gradio                 # in another
python gradio_demo.py http://127.0.0.1:8765    # KEY in the environment, if any
"""

import os
import sys

import gradio

from dcmpl.client import Client

client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8765", os.getenv("KEY"))


def rank(files: list[str] | None, prompt: str) -> tuple[list[tuple[str, str]], str]:
    """Images best first, each with its score, and how sure the first place is."""
    if not files:
        return [], "Choose some images."
    ranked = client.rank(files, prompt)
    shown = [
        (score.image, f"{score.quality:.3f}" if score.status == "ok" else score.reason)
        for score in ranked
        if score.status == "ok"
    ]
    faults = [score.reason for score in ranked if score.status == "error"]
    call = ranked[0].more["call"] or "the model does not know how sure it is"
    return shown, "\n".join([f"The first against the second: {call}.", *faults])


demo = gradio.Interface(
    rank,
    [gradio.File(file_count="multiple", file_types=["image"]), gradio.Textbox(label="Prompt")],
    [gradio.Gallery(label="Best first"), gradio.Textbox(label="How sure")],
    title="How good do these images look?",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
