"""1X's world-model data, read where it lies: v1.1, v2.0 as tokens, as video, and the test samples.

Facts about the layouts: the data sets' cards on the Hugging Face hub (1x-technologies/worldmodel and
worldmodel_raw_data) and the readers published with github.com/1x-technologies/1xgpt. `docs/onex.md` describes them.
"""
