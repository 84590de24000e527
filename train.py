"""Train a stage: ``python train.py fit -c configs/stage1.yaml`` (also validate, test)."""

from reconx_pl.cli.train import main

if __name__ == "__main__":
    main()
