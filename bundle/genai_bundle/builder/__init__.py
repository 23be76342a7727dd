# SPDX-License-Identifier: Apache-2.0
"""Write bundles: checkpoint -> graph -> variants -> pack -> prove -> file. The only place that imports torch, and late.

`build.build` recognises what it is given; `from_checkpoint` and `recipe` build, and so do `genai_bundle.importers`.
"""
