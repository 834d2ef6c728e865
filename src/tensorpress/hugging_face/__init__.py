"""Pressed models in Transformers: ``from_pretrained``, ``save_pretrained`` and what builds on them.

`import_hook` waits for transformers, `registration` makes it know pressed folders, `quantizer`
builds their models, `pressed_config` is what their ``config.json`` says, and `factor_names` tells
factors from other tensors in a file.
"""
