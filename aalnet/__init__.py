"""AALNet: from a condition image and a label, several different, plausible target images.

The training step is `aalnet.step.train_step`; the equations are in docs/objective.md.
"""
