"""`recollect calibrate`: train the artefacts that some recipes need."""

from __future__ import annotations

import json
from pathlib import Path

import click

from recollect.cli.common import debug_option, err, json_option, load_model, model_options, out


@click.command()
@model_options
@click.option("--out", "path", type=click.Path(path_type=Path), help="File to write.  "
              "[default: recollect/duo-attention.safetensors in the checkpoint]")  # fmt: skip
@click.option("--steps", default=200, show_default=True, type=click.IntRange(min=1),
              help="Training texts.")  # fmt: skip
@click.option("--length", default=512, show_default=True, help="Tokens of each text.")
@click.option("--sinks", default=4, show_default=True, help="First tokens streaming heads see.")
@click.option("--recent", default=64, show_default=True, help="Recent tokens they see.")
@click.option("--penalty", default=0.05, show_default=True, help="Larger closes more heads.")
@click.option("--learning-rate", default=0.02, show_default=True)
@click.option("--seed", default=0, show_default=True)
@json_option
@debug_option
def calibrate(
    model: str,
    dtype: str,
    device: str,
    threads: int | None,
    path: Path | None,
    steps: int,
    length: int,
    sinks: int,
    recent: int,
    penalty: float,
    learning_rate: float,
    seed: int,
    as_json: bool,
) -> None:
    """Train duo-attention's head gates for a model, on needles in real text.

    \b
    Example:
      recollect calibrate --model tiny-llama --steps 100 --out gates.safetensors
      recollect generate --model tiny-llama --recipe "duo-attention(gates='gates.safetensors')" \\
          --keep 0.5 --prompt 'def main():'
    """
    subject = load_model(model, dtype, device, threads)
    from rich.progress import Progress

    from recollect.evaluate.calibration import retrieval_texts
    from recollect.kv import calibrate_gates
    from recollect.kv.artefacts import GATES

    path = path or Path(subject.model.config._name_or_path) / GATES
    texts = retrieval_texts(subject, steps=steps, length=length, seed=seed)
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("training gates", total=steps)

        def show(_: int, distance: float, gate: float) -> None:
            note = f"distance {distance:.4f}, mean gate {gate:.2f}"
            bar.update(task, advance=1, description=note)

        gates = calibrate_gates(
            subject.model, texts, path, sinks=sinks, recent=recent, penalty=penalty,
            learning_rate=learning_rate, progress=show,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"path": str(path), "gates": gates.tolist()}))
        return
    for layer, row in enumerate(gates.tolist()):
        out.print(f"layer {layer:2d}  " + "  ".join(f"{gate:.2f}" for gate in row))
    out.print(f"written to {path}")
