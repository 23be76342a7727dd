# SPDX-License-Identifier: Apache-2.0
"""One module for each foreign layout. A module that is a layout has

LAYOUT: what to call it, as in "this is ..."; recognises(path) -> bool, which is quick and reads names and small files
only; build(source, target, options, tell) -> the bundle's id.
"""
