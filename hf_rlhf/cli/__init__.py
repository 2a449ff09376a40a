"""The command `hf-rlhf`: flags and YAML files to the arguments of a recipe, help, and exit status."""
