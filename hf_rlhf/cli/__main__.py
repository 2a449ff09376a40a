"""`python -m hf_rlhf.cli`, for where the command `hf-rlhf` is not on the path."""

from hf_rlhf.cli.main import main

raise SystemExit(main())
