"""`python -m hf_rlhf.cli`, for machines where the command `hf-rlhf` is not on the path."""

from hf_rlhf.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
