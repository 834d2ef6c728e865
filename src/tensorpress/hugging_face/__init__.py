"""Pressed models in Transformers: ``from_pretrained``, ``save_pretrained`` and their extensions.

`import_hook` waits for the import of transformers, `registration` registers pressed folders,
`quantizer` builds their models, `pressed_config` reads and writes their ``config.json``, and
`factor_names` recognizes factors by name.
"""
