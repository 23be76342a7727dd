# SPDX-License-Identifier: Apache-2.0
"""``python -m genai_bundle`` is the command ``genai-bundle``."""

from genai_bundle.cli import main

if __name__ == "__main__":
    main()
