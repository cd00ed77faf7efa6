"""What every graph hands back for a row of logits."""

# How many of the largest logits a step hands back for each row. The samplers check that the
# candidates they were given suffice and fetch the full row where they don't.
NUM_CANDIDATES = 64
