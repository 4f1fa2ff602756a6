"""What a practitioner writes in PyTorch to score a folder: a Dataset that opens films with Pillow, a DataLoader with a
worker a core, the network, a CSV file. Run as a script; it prints a JSON object with the seconds of the loop."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench.machine import cores
from bench.peers.arrays import Arrays
from bench.peers.twin import Twin

CLASSES = ("COVID-19", "No-Findings", "Pneumonia")


class Films(Dataset):
    """uint8 ``[1, S, S]`` tensors of the films of a folder."""

    def __init__(self, folder: Path, size: int, draft: bool):
        self.paths = sorted(folder.iterdir())
        self._size, self._draft = size, draft

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as film:
            if self._draft:
                film.draft("L", (2 * self._size, 2 * self._size))
            gray = film.convert("L").resize((self._size, self._size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(gray))[None]


def score(folder: Path, out: Path, weights: Path, size: int, draft: bool) -> dict[str, float]:
    """One row a film; returns how many films and the seconds that the loop took, without imports and loading."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Twin(size, 1, len(CLASSES))
    network.load(Arrays(weights))
    model = network.eval().to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    films = Films(folder, size, draft)
    start = time.perf_counter()
    loader = DataLoader(films, batch_size=32, num_workers=cores(), pin_memory=device.type == "cuda")
    with out.open("w", newline="") as file, torch.inference_mode():
        writer = csv.writer(file)
        writer.writerow(["path", "prediction", "confidence", *(f"p_{name}" for name in CLASSES)])
        done = 0
        for pixels in loader:
            inputs = (pixels.to(device, non_blocking=True).float() / 255 - 0.5) / 0.25
            probabilities = torch.softmax(model(inputs.to(memory_format=torch.channels_last)), 1).cpu().numpy()
            for values in probabilities:
                best = int(values.argmax())
                writer.writerow([films.paths[done], CLASSES[best], values[best], *values])
                done += 1
    return {"images": done, "loop": time.perf_counter() - start}


if __name__ == "__main__":
    folder, out, weights = map(Path, sys.argv[1:4])
    print(json.dumps(score(folder, out, weights, int(sys.argv[4]), "draft" in sys.argv[5:])))
