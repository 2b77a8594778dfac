from __future__ import annotations
import copy, itertools
from collections.abc import Mapping
from pathlib import Path
import torch
from diffusers import WanTransformer3DModel
from flowblending.export.attention import attend, rotate
from flowblending.export.family import Exportable, Part, Tensors
from flowblending.export.spec import GraphSpec, Precision, TensorSpec

class _Processor:
    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q=attn.norm_q(attn.to_q(hidden_states)); k=attn.norm_k(attn.to_k(context)); v=attn.to_v(context)
        if rotary_emb is not None:
            q=rotate(q,*rotary_emb,attn.heads); k=rotate(k,*rotary_emb,attn.heads)
        return attn.to_out[0](attend(q,k,v,attn.heads))

class _Rope(torch.nn.Module):
    def __init__(self, rope):
        super().__init__()
        self.patch=rope.patch_size; self.limit=rope.max_seq_len
        widths=[rope.t_dim//2,rope.h_dim//2,rope.w_dim//2]
        self.tables=torch.nn.ModuleList()
        self.cos=[t.contiguous() for t in rope.freqs_cos[:,0::2].split(widths,1)]
        self.sin=[t.contiguous() for t in rope.freqs_sin[:,1::2].split(widths,1)]
    def forward(self, x):
        b=x.shape[0]
        n=[s//p for s,p in zip(x.shape[2:],self.patch)]
        if max(n)>self.limit: raise ValueError
        def grid(tabs):
            f,h,w=[t[:k] for t,k in zip(tabs,n)]
            parts=(f[:,None,None].expand(*n,-1),h[None,:,None].expand(*n,-1),w[None,None].expand(*n,-1))
            c=torch.cat(parts,-1)
            return c.reshape(1,n[0]*n[1]*n[2],c.shape[-1]).expand(b,-1,-1)
        return grid(self.cos),grid(self.sin)

class M(torch.nn.Module):
    def __init__(s,m):
        super().__init__(); s.m=m; s.dtype=m.dtype
    def forward(s,l,t,e):
        return (s.m(l.to(s.dtype),t,e.to(s.dtype),return_dict=False)[0].float(),)
