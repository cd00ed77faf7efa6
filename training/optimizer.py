"""The optimizer: Muon for the blocks' matrices, AdamW for everything else, on float32 masters.

The model computes in its own dtype; weights kept in bfloat16 alone would lose every update smaller
than 1/256 of themselves, so the masters are float32 and are copied into it each step.

Muon (Jordan et al., 2024) takes the momentum of a matrix to the nearest orthogonal one, so that
every direction of it moves alike; its scale here is that of Liu et al. (2025, arXiv 2502.16982,
section 2.2), which makes one learning rate do for both.
"""

import torch
from model import CodeGen
from torch import Tensor, nn

CLIP = 1.0  # largest norm of the gradient
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: fast from zero, ends near one
NEWTON_SCHULZ_STEPS = 5
UPDATE_SIZE = 0.2  # root mean square of an update at rate 1, as AdamW's tends to be


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Orthogonalise [N, rows, columns], rows <= columns, in `dtype`: singular values near one."""
    a, b, c = NEWTON_SCHULZ
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float() * (UPDATE_SIZE * matrices.shape[2] ** 0.5)


class Optimizer:
    """Holds the masters of a CodeGen; the blocks' are views of two stacks, one a kind."""

    def __init__(self, model: CodeGen, weight_decay: float) -> None:
        self.model, self.width, self.weight_decay = model, model.shape.n_embd, weight_decay
        parameters = dict(model.named_parameters())
        self.masters = {name: p.detach().float().clone() for name, p in parameters.items()}
        self.names = [
            [name for name in parameters if name.endswith(kind)]
            for kind in ("w_in.weight", "w_out.weight")
        ]
        self.stacks, self.momenta = [], []
        for names in self.names:
            stack = torch.stack([self.masters[name] for name in names])
            self.masters.update(zip(names, stack.unbind(), strict=True))
            self.stacks.append(stack)
            self.momenta.append(torch.zeros_like(stack))
        stacked = {name for names in self.names for name in names}
        others = [master for name, master in self.masters.items() if name not in stacked]
        groups = [
            {"params": [m for m in others if m.dim() == 2], "weight_decay": weight_decay},
            {"params": [m for m in others if m.dim() < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """Apply the model's gradients and clear them; return their norm before clipping."""
        parameters = dict(self.model.named_parameters())
        gradients = {name: p.grad.float() for name, p in parameters.items()}
        self.model.zero_grad(set_to_none=True)
        norm = nn.utils.get_total_norm(list(gradients.values()))
        scale = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        for name, gradient in gradients.items():
            gradient.mul_(scale)
            self.masters[name].grad = gradient
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.move_stacks(gradients, rate)
        self.publish()
        return float(norm)

    def move_stacks(self, gradients: dict[str, Tensor], rate: float) -> None:
        width, directions = self.width, []
        for names, momentum in zip(self.names, self.momenta, strict=True):
            gradient = torch.stack([gradients[name] for name in names])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            directions.append(gradient.lerp_(momentum, MOMENTUM))  # Nesterov's
        w_in, w_out = directions  # [L, 7H, H], [L, H, 5H]
        # Query, key, value and out_proj are matrices of their own, and so are fc_in and fc_out.
        layers = len(w_in)
        square = torch.cat(
            (w_in[:, : 3 * width].reshape(3 * layers, width, width), w_out[:, :, :width])
        )
        wide = torch.cat((w_in[:, 3 * width :].mT, w_out[:, :, width:]))
        dtype = self.model.wte.weight.dtype
        square, wide = orthogonal(square, dtype), orthogonal(wide, dtype)
        w_in[:, : 3 * width] = square[: 3 * layers].reshape(layers, 3 * width, width)
        w_in[:, 3 * width :] = wide[:layers].mT
        w_out[:, :, :width], w_out[:, :, width:] = square[3 * layers :], wide[layers:]
        for stack, direction in zip(self.stacks, directions, strict=True):
            stack.mul_(1 - rate * self.weight_decay).sub_(direction, alpha=rate)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.masters[name])

    def state(self) -> dict[str, object]:
        return {
            "weights": {name: master.detach() for name, master in self.masters.items()},
            "adamw": self.adamw.state_dict(),
            "momenta": self.momenta,
        }

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.masters[name].copy_(weight)

    @torch.no_grad()
    def load(self, state: dict[str, object]) -> None:
        self.set_weights(state["weights"])
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])
