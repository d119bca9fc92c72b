"""Where the images of a distillation come from: one source per file."""
