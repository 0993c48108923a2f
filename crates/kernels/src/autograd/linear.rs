//! A linear layer and its gradients.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::matrix::{Into, Matrix, multiply};
use super::{Gradients, View, applies, attach, is_tracked, nothing, parts, sum_of_rows, total};
use crate::reference;

/// See [`crate::linear`].
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !applies(&[x, weight]) || bias.is_some_and(|bias| !applies(&[bias])) {
        return reference::linear(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == inputs && inputs > 0 => *last = outputs,
        _ => candle_core::bail!("a linear layer {:?} for {:?}", weight.dims(), x.dims()),
    }
    let rows = x.elem_count() / inputs;
    let mut values = vec![0f32; rows * outputs];
    {
        let (x, weight) = (View::new(&x)?, View::new(&weight)?);
        let bias = bias.map(Tensor::contiguous).transpose()?;
        let bias = bias.as_ref().map(View::new).transpose()?;
        let step = rows.div_ceil(parts(rows)).max(1);
        values.par_chunks_mut(step * outputs.max(1)).enumerate().for_each(|(part, out)| {
            let rows = out.len() / outputs;
            let x = &x.values()[part * step * inputs..][..rows * inputs];
            if let Some(bias) = &bias {
                for row in out.chunks_exact_mut(outputs) {
                    row.copy_from_slice(bias.values());
                }
            }
            let (x, weight) = (
                Matrix::new(x, rows, inputs, inputs),
                Matrix::new(weight.values(), outputs, inputs, inputs),
            );
            multiply(x, weight.t(), out, outputs, (Into::Add, 1.0));
        });
    }
    let bias = match bias {
        Some(bias) => bias.contiguous()?,
        None => nothing(&x)?,
    };
    attach(values, shape, [&x, &weight, &bias], Linear)
}

struct Linear;

impl Gradients for Linear {
    const NAME: &'static str = "linear";

    fn gradients(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = gradient.contiguous()?;
        let (outputs, inputs) = weight.dims2()?;
        let rows = x.elem_count() / inputs.max(1);
        let (values, weights, grad_out) =
            (View::new(x)?, View::new(weight)?, View::new(&gradient)?);
        let (values, weights, grad_out) = (values.values(), weights.values(), grad_out.values());
        let range = |part: usize, count: usize| part * rows / count..(part + 1) * rows / count;

        let grad_x = is_tracked(&[x]).then(|| {
            let mut out = vec![0f32; rows * inputs];
            let step = rows.div_ceil(parts(rows)).max(1);
            out.par_chunks_mut(step * inputs.max(1)).enumerate().for_each(|(part, out)| {
                let rows = out.len() / inputs;
                let grad_out = &grad_out[part * step * outputs..][..rows * outputs];
                multiply(
                    Matrix::new(grad_out, rows, outputs, outputs),
                    Matrix::new(weights, outputs, inputs, inputs),
                    out,
                    inputs,
                    (Into::Replace, 1.0),
                );
            });
            Tensor::from_vec(out, x.shape(), &Device::Cpu)
        });
        let grad_weight = is_tracked(&[weight]).then(|| {
            let count = parts(rows);
            let sums: Vec<Vec<f32>> = (0..count)
                .into_par_iter()
                .map(|part| {
                    let range = range(part, count);
                    let n = range.len();
                    let mut sum = vec![0f32; outputs * inputs];
                    multiply(
                        Matrix::new(&grad_out[range.start * outputs..], n, outputs, outputs).t(),
                        Matrix::new(&values[range.start * inputs..], n, inputs, inputs),
                        &mut sum,
                        inputs,
                        (Into::Replace, 1.0),
                    );
                    sum
                })
                .collect();
            Tensor::from_vec(total(sums, outputs * inputs), (outputs, inputs), &Device::Cpu)
        });
        let grad_bias = is_tracked(&[bias]).then(|| {
            let sum = sum_of_rows(grad_out, outputs);
            Tensor::from_vec(sum, bias.dim(D::Minus1)?, &Device::Cpu)
        });
        Ok([grad_x.transpose()?, grad_weight.transpose()?, grad_bias.transpose()?])
    }
}
