# What ships, made again from nothing: `make weights`. Each stage is a folder that is whole when its stamp is there; the
# same command goes on where it was stopped, in the middle of a stage too. Sizes may be given: `make weights MINUTES=10`.
HWM     ?= .venv/bin/hwm
OUT     ?= weights
ASSETS  ?= hwm/assets
MINUTES ?= 240
TOKENIZER_STEPS ?= 3000
MODEL_STEPS     ?= 100000
CLIPS   ?= 24

home := --world home --every 3 --size 256
.DELETE_ON_ERROR:
.PHONY: weights
weights: $(OUT)/shipped

# takes of half a minute to learn from, and longer ones with other things about, to be judged on
$(OUT)/train/meta.json:
	$(HWM) record sim $(home) --minutes $(MINUTES) --out $(@D)
$(OUT)/heldout/meta.json:
	$(HWM) record sim $(home) --held-out --seconds 40 --minutes 8 --out $(@D)

# the tokenizer learns from every third picture
$(OUT)/pixels/meta.json: $(OUT)/train/meta.json
	$(HWM) encode $(<D) --tokenizer pixels-128x128 --every 3 --out $(@D)
$(OUT)/pixels_heldout/meta.json: $(OUT)/heldout/meta.json
	$(HWM) encode $(<D) --tokenizer pixels-128x128 --every 3 --out $(@D)
$(OUT)/tokenizer/done: $(OUT)/pixels/meta.json $(OUT)/pixels_heldout/meta.json
	$(HWM) train tokenizer_home --data.stores $(<D) --data.val-stores $(OUT)/pixels_heldout \
	  --train.steps $(TOKENIZER_STEPS) --out $(@D)
	touch $@

$(OUT)/cells/meta.json: $(OUT)/train/meta.json $(OUT)/tokenizer/done
	$(HWM) encode $(<D) --tokenizer $(OUT)/tokenizer --out $(@D)
$(OUT)/cells_heldout/meta.json: $(OUT)/heldout/meta.json $(OUT)/tokenizer/done
	$(HWM) encode $(<D) --tokenizer $(OUT)/tokenizer --keep-video --out $(@D)
$(OUT)/model/done: $(OUT)/cells/meta.json $(OUT)/cells_heldout/meta.json
	$(HWM) train diffusion_home --data.stores $(<D) --data.val-stores $(OUT)/cells_heldout \
	  --train.steps $(MODEL_STEPS) --out $(@D)
	touch $@

$(OUT)/figures.json: $(OUT)/model/done
	$(HWM) evaluate $(<D) --data $(OUT)/cells_heldout --tokenizer $(OUT)/tokenizer --long --long-clips $(CLIPS) \
	  --out $@ --report $(OUT)/report.html

# into the package
$(OUT)/shipped: $(OUT)/figures.json
	$(dir $(HWM))python docs/assets/ship_home.py --weights $(OUT) --out $(ASSETS)
	touch $@
