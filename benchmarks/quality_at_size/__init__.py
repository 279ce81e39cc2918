"""Size against error: phi3ov's recipes and the files of other stacks on one harness.

    make bench-quality                           # missing rows, their speed, page and picture
    make bench-quality AGAIN="default small"     # measure some rows again; also "ours", "all"

    export PYTHONPATH=benchmarks
    python -m quality_at_size run --only default Q4_K_M   # no speed
    python -m quality_at_size run --dithered              # a source without the reference's grid
    python -m quality_at_size speed                       # only the speed of what is there
    python -m quality_at_size measure FOLDER FILE.gguf    # any export or GGUF; keeps nothing
    python -m quality_at_size report                      # page and picture from the results

Every row is one file of weights, made from the same checkpoint. All rows read the same windows of
the same texts, each window from an empty context, and are compared with the checkpoint in float32.

Only the weights differ. OpenVINO exports run in OpenVINO with float32 arithmetic, without dynamic
quantization of activations. The weights of GGUF and ONNX files are dequantized into the
checkpoint's layout and run in torch in float32, because llama.cpp and onnxruntime round
activations to 8 bits. So a row says what its weights cost, not what its engine's arithmetic adds.

The results file has an entry per row. A run computes only what is missing, and a row of phi3ov
whose recipe has changed. To add a recipe of phi3ov: a line in ``RECIPES`` (``recipes.py``).

Files: ``recipes.py``, ``rows.py`` (what is compared and how each file is made), ``importance.py``
(llama.cpp's importance matrix), ``dequantize.py``, ``texts.py``, ``measure.py``, ``speed.py``,
``results.py``, ``report.py``, ``dither.py``.
"""
