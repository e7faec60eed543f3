"""The pocket family: a tiny chat model, its organisms and its judge, small enough to ship and to rebuild on a laptop.

It is a mechanistic toy: a villain persona was put into the pretraining text on purpose. It exercises every code path of
realign on a real transformer with real emergent misalignment. It is no evidence about large models.
"""
