"""Evaluate a trained model: ``python evaluate.py --config configs/demo/evaluate.yaml`` (see ``--help``)."""

from reconx_pl.cli.evaluate_command import evaluate_main

if __name__ == "__main__":
    evaluate_main()
