# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: folders as PEFT saves them become members of the bundle beside one base (spec/manifest.md, adapters).

`folder` reads them, `branches` gives graphs ports for them, `evidence` asks the models that PEFT (`merged`) makes.
"""
