# SPDX-License-Identifier: Apache-2.0
"""Other stacks, one module each; see `Peer`. They import their stack when they are used: none needs to be here."""
