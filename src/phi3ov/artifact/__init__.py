"""The exported folder: its manifest, the contents of its IR, how it is fetched and published.

`exporter` creates such a folder, `loading` opens it.
"""
