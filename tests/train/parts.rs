//! The parts of training and short distillations, against torch.

use animatelcm::Stop;
use animatelcm::models::motion::{MotionConfig, MotionNorm};
use animatelcm::models::unet::UNetConfig;
use animatelcm::schedule::{BetaSchedule, NoiseSchedule};
use animatelcm::train::{
    AdamW, Batch, Cell, Compute, Distillation, Grid, Insertion, Loss, LowRank, Pace, PerImage,
    Student, Weights, animatediff_name, clip, gradients, is_spatial_module, move_towards,
    variables,
};
use animatelcm::weights::random;
use candle_core::{Device, Tensor, Var};
use serde_json::Value;

use crate::support::close::{assert_all_close, assert_close, assert_relative};
use crate::support::golden;
use crate::support::tiny;

pub(super) fn drawn(name: &str, shape: &[usize]) -> Tensor {
    let values = random::values(&format!("input.{name}"), shape);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub(super) fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000).unwrap()
}

pub(super) fn scalar(x: &Tensor) -> f64 {
    f64::from(x.to_scalar::<f32>().unwrap())
}

#[test]
fn losses_and_their_gradients_are_those_of_torch() {
    let golden = golden::load("train/parts");
    let target = golden.tensor("target");
    for (name, loss) in
        [("mse", Loss::Mse), ("huber", Loss::Huber(0.3)), ("pseudo_huber", Loss::PseudoHuber(0.05))]
    {
        let prediction = Var::from_tensor(&golden.tensor("prediction")).unwrap();
        let value = loss.of(&prediction, &target).unwrap();
        assert_all_close(&[scalar(&value)], &golden.values(name), 1e-6);
        let store = value.backward().unwrap();
        let wanted = golden.tensor(&format!("d.{name}"));
        assert_relative(store.get(&prediction).unwrap(), &wanted, 1e-6);
        assert_eq!(scalar(&loss.of(&target, &target).unwrap()), 0.0);
    }
    assert!(
        Loss::Huber(0.0).validate().is_err() && Loss::PseudoHuber(f64::NAN).validate().is_err()
    );
    assert!(Loss::Mse.validate().is_ok() && Loss::Huber(1.0).validate().is_ok());
}

#[test]
fn the_solver_and_the_consistency_function_are_those_of_torch() {
    let golden = golden::load("train/parts");
    let (x, noise) = (golden.tensor("x"), golden.tensor("noise"));
    let indices: Vec<usize> = golden.values("indices").into_iter().map(|i| i as usize).collect();
    for skip in [1, 5] {
        let grid = Grid::new(&schedule(), 50, skip).unwrap();
        let cells: Vec<Cell> = indices.iter().map(|i| grid.cell(*i)).collect();
        let per_image = |level: fn(&Cell) -> _| {
            PerImage::new(cells.iter().map(level).collect(), 1, &Device::Cpu)
        };
        let (from, to) = (per_image(|cell| cell.from), per_image(|cell| cell.to));
        assert_eq!(from.timesteps(), golden.values(&format!("from.{skip}")));
        assert_eq!(to.timesteps(), golden.values(&format!("to.{skip}")));
        let solved = from.solve(&x, &noise, &to).unwrap();
        assert_relative(&solved, &golden.tensor(&format!("solved.{skip}")), 1e-6);
        let noisy = from.add_noise(&x, &noise).unwrap();
        assert_relative(&noisy, &golden.tensor("noisy"), 1e-6);
        let consistent = from.consistent(&x, &noise).unwrap();
        assert_relative(&consistent, &golden.tensor("consistent"), 1e-6);
    }
    for (cells, skip) in [(0, 1), (1001, 1), (50, 0), (50, 51)] {
        assert!(Grid::new(&schedule(), cells, skip).is_err(), "{cells} {skip}");
    }
}

#[test]
fn a_perfect_teacher_leaves_its_students_nothing_to_learn() {
    // If the predicted noise is the true noise, the solver stays on the trajectory of the sample, and what is
    // clean there is the same at both ends, but for the boundary.
    let (clean, noise) =
        (drawn("perfect.clean", &[2, 3, 4, 4]), drawn("perfect.noise", &[2, 3, 4, 4]));
    let grid = Grid::new(&schedule(), 100, 5).unwrap();
    let cells = [grid.cell(99), grid.cell(40)];
    let at =
        |level: fn(&Cell) -> _| PerImage::new(cells.iter().map(level).collect(), 1, &Device::Cpu);
    let (from, to) = (at(|cell| cell.from), at(|cell| cell.to));
    let next = from.solve(&from.add_noise(&clean, &noise).unwrap(), &noise, &to).unwrap();
    assert_relative(&next, &to.add_noise(&clean, &noise).unwrap(), 1e-5);
    assert_relative(&to.consistent(&next, &noise).unwrap(), &clean, 1e-4);
}

#[test]
fn gradients_remember_nothing() {
    let [down, up] = ["remember.down", "remember.up"].map(|name| drawn(name, &[4, 4]));
    let vars = variables(&[("down".to_owned(), down), ("up".to_owned(), up)].into()).unwrap();
    let product = vars["up"].matmul(vars["down"].as_tensor()).unwrap();
    let mut store = product.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    // candle's own gradient of a product is a product with a variable.
    assert!(store.get(&vars["up"]).unwrap().track_op());
    let found = gradients(&mut store, &vars).unwrap();
    assert!(found.values().all(|gradient| !gradient.track_op()));
}

#[test]
fn errors_of_noise_can_count_as_those_of_velocity() {
    let [clean, noise, said] =
        ["weigh.clean", "weigh.noise", "weigh.said"].map(|name| drawn(name, &[2, 3, 4, 4]));
    let levels = [999, 300].map(|timestep| schedule().level(timestep).unwrap());
    let at = PerImage::new(levels.to_vec(), 1, &Device::Cpu);
    let x = at.add_noise(&clean, &noise).unwrap();
    let weighed = |noise: &Tensor| at.weigh(noise, 1.0).unwrap();
    let error = (weighed(&said) - weighed(&noise)).unwrap();
    for (i, level) in levels.into_iter().enumerate() {
        // v = alpha ε - sigma x₀, with the x₀ that x and ε mean.
        let velocity = |noise: &Tensor| {
            let noise = noise.get(i).unwrap();
            let clean = ((x.get(i).unwrap() - (&noise * level.sigma).unwrap()).unwrap()
                / level.alpha)
                .unwrap();
            ((noise * level.alpha).unwrap() - (clean * level.sigma).unwrap()).unwrap()
        };
        let wanted = (velocity(&said) - velocity(&noise)).unwrap();
        assert_relative(&error.get(i).unwrap(), &wanted, 1e-5);
    }
    assert_close(&at.weigh(&said, 0.0).unwrap(), &said, 0.0);
}

#[test]
fn adamw_and_clipping_are_those_of_torch() {
    let golden = golden::load("train/parts");
    let var = Var::from_tensor(&drawn("adam", &[3, 4])).unwrap();
    let vars = [("w".to_owned(), var.clone())].into();
    let mut optimizer = AdamW::new(0.1);
    for step in 0..10 {
        let gradient =
            (drawn(&format!("adam.gradient.{step}"), &[3, 4]) * (step + 1) as f64).unwrap();
        let mut gradients: Weights = [("w".to_owned(), gradient)].into();
        let norm = clip(&mut gradients, 5.0).unwrap();
        let wanted = golden.values(&format!("adam.norm.{step}"))[0];
        assert!((norm - wanted).abs() < 1e-5 * wanted, "{norm} {wanted}");
        optimizer.step(&vars, &gradients, 0.02).unwrap();
        assert_close(&var, &golden.tensor(&format!("adam.{step}")), 2e-6);
    }
    assert!(optimizer.step(&vars, &Weights::new(), 0.02).is_err());
}

#[test]
fn the_target_receives_its_share_of_the_lora() {
    let online: Weights = [("w".to_owned(), drawn("share", &[5, 3]))].into();
    let mut target: Weights = [("w".to_owned(), online["w"].zeros_like().unwrap())].into();
    for n in 1..=90 {
        move_towards(&mut target, &online, 0.05).unwrap();
        if [14, 45, 59, 90].contains(&n) {
            // Of a weight that stands still the average holds 1 - μⁿ: 51 %, 90 %, 95 %, 99 %.
            let share = 1.0 - 0.95f64.powi(n);
            assert_relative(&target["w"], &(&online["w"] * share).unwrap(), 1e-5);
        }
    }
    assert!(move_towards(&mut target, &Weights::new(), 0.05).is_err());
}

pub(super) fn tiny_weights(motion: bool) -> Weights {
    let files = if motion { &[tiny::UNET, tiny::MOTION][..] } else { &[tiny::UNET] };
    // Tables of positions are computed.
    let is_weight = |name: &str, t: &Tensor| t.dtype().is_float() && !name.contains("pos_embed");
    tiny::tensors(files).into_iter().filter(|(name, t)| is_weight(name, t)).collect()
}

pub(super) fn tiny_config(motion: bool) -> UNetConfig {
    let config: UNetConfig = tiny::config("tiny/model/unet/config.json");
    let modules: MotionConfig = tiny::config("tiny/model/motion_adapter/config.json");
    if motion { config.with_motion(modules) } else { config }
}

/// The LoRA of the goldens: every spatial module, rank 3, alpha 2.
fn lora(weights: &Weights, learns: bool) -> LowRank {
    let is_spatial = |name: &str| name.strip_suffix(".weight").is_some_and(is_spatial_module);
    let spatial = weights.iter().filter(|(name, _)| is_spatial(name));
    let spatial = spatial.map(|(name, weight)| (name.clone(), weight.clone())).collect();
    LowRank::from_factors(&factors(&spatial, if learns { 0.0 } else { 0.1 }), 2.0).unwrap()
}

/// Factors of rank 3 for these weights; the second ones drawn with a factor.
pub(super) fn factors(weights: &Weights, scale: f64) -> Weights {
    let mut factors = Weights::new();
    for (name, weight) in weights {
        let module = name.strip_suffix(".weight").unwrap();
        let mut down = weight.dims().to_vec();
        down[0] = 3;
        let mut up = vec![1; down.len()];
        (up[0], up[1]) = (weight.dims()[0], 3);
        let part = |end: &str, shape: &[usize], scale: f64| {
            (drawn(&format!("{module}.{end}"), shape) * scale).unwrap()
        };
        factors.insert(format!("{module}.lora_down.weight"), part("down", &down, 0.3));
        factors.insert(format!("{module}.lora_up.weight"), part("up", &up, scale));
    }
    factors
}

pub(super) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The run of that name, step by step, against torch's.
fn distil(name: &str) {
    let run = &golden::json("train/distill")[name];
    let is = |key: &str| run[key].as_bool().unwrap();
    let frames = run["frames"].as_u64().unwrap() as usize;
    let steps = run["steps"].as_u64().unwrap() as usize;
    let motion = frames > 1;
    let weights = tiny_weights(motion);
    let student = Student {
        lora: is("lora").then(|| lora(&weights, is("lora_learns"))),
        lora_learns: is("lora_learns"),
        motion_learns: is("motion_learns"),
        insertion: if is("gradual") { Insertion::Gradual } else { Insertion::Plain },
    };
    let norm = MotionNorm::Pooled;
    let mut distillation = Distillation::new(
        tiny_config(motion),
        norm,
        weights,
        student,
        &Compute::exact(&Device::Cpu),
    )
    .unwrap();
    let grid = Grid::new(&schedule(), 50, 1).unwrap();
    let pace = Pace { rate: 1e-3, warmup: 5, steps: 20, floor: 0.1 };
    let mut optimizer = AdamW::new(1e-2);
    let vars = distillation.vars();
    let (losses, norms) = (numbers(&run["losses"]), numbers(&run["norms"]));
    for step in 0..steps {
        let drawn_batch = &run["batches"][step];
        let cells: Vec<Cell> = drawn_batch["indices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|index| grid.cell(index.as_u64().unwrap() as usize))
            .collect();
        let clips = cells.len();
        let shape = [clips * frames, 4, 8, 8];
        let empty = drawn("empty", &[1, 5, 12]);
        let batch = Batch {
            clean: drawn(&format!("clean.{step}"), &shape),
            noise: drawn(&format!("noise.{step}"), &shape),
            context: drawn(&format!("context.{step}"), &[clips, 5, 12]),
            empty: empty.repeat((clips, 1, 1)).unwrap(),
            frames,
            cells,
            scales: numbers(&drawn_batch["scales"]),
        };
        let loss = distillation.loss(&batch, Loss::PseudoHuber(0.01)).unwrap();
        // Rounding grows from step to step: each update is a sign as much as a size.
        let tolerance = 2e-5 * (1 + step) as f64;
        let got = scalar(&loss);
        let close = |got: f64, want: f64| (got - want).abs() <= tolerance * want.abs();
        assert!(close(got, losses[step]), "{name}, loss {step}: {got}, not {}", losses[step]);
        let mut found = gradients(&mut loss.backward().unwrap(), &vars).unwrap();
        let norm = clip(&mut found, 1.0).unwrap();
        assert!(
            (norm - norms[step]).abs() <= 10.0 * tolerance * norms[step],
            "{name}, norm {step}: {norm}, not {}",
            norms[step]
        );
        optimizer.step(&vars, &found, pace.at(step)).unwrap();
        distillation.follow(0.95).unwrap();
    }
    // How far weights have come, along a drawn direction, against how far they have moved.
    let product = |name: &str, weight: &Tensor| {
        let with = drawn(&format!("{name}.first"), weight.dims());
        let values: Vec<f32> = (weight * with).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f64::from).sum::<f64>()
    };
    let wanted = run["target"].as_object().unwrap();
    for (name, wanted) in wanted {
        let wanted = wanted.as_f64().unwrap();
        let target = &distillation.target()[name];
        let got = product(name, target);
        let moved = run["moved"][name].as_f64().unwrap();
        let reach = moved * (target.elem_count() as f64).sqrt();
        assert!((got - wanted).abs() <= 5e-3 * reach + 2e-5, "{name}: {got}, not {wanted}");
    }
    assert!(wanted.len() > 5);
}

#[test]
fn distillation_of_images_is_that_of_torch() {
    distil("image");
}

#[test]
fn distillation_of_clips_with_gradual_insertion_is_that_of_torch() {
    distil("gradual");
}

#[test]
fn distillation_of_clips_with_plain_insertion_is_that_of_torch() {
    distil("plain");
}

#[test]
fn joint_distillation_is_that_of_torch() {
    distil("joint");
}

#[test]
fn a_student_that_cannot_learn_is_refused() {
    let weights = tiny_weights(false);
    let distillation = |student: Student| {
        let (config, norm) = (tiny_config(false), MotionNorm::PerFrame);
        Distillation::new(config, norm, weights.clone(), student, &Compute::exact(&Device::Cpu))
            .map(|_| ())
    };
    assert!(distillation(Student::default()).is_err());
    assert!(distillation(Student { motion_learns: true, ..Student::default() }).is_err());
    let frozen = Student { lora: Some(lora(&weights, true)), ..Student::default() };
    assert!(distillation(frozen.clone()).is_err());
    assert!(distillation(Student { lora_learns: true, ..frozen }).is_ok());
    assert!(LowRank::new(&weights, 0, 1.0, 1, is_spatial_module).is_err());
    assert!(LowRank::new(&weights, 4, 1.0, 1, |_| false).is_err());
}

#[test]
fn a_network_learns_one_clip_by_heart() {
    // Overfitting: the loss of one clip at one noise level goes to nearly nothing.
    let weights = tiny_weights(true);
    let config = tiny_config(true);
    let vars = variables(&weights).unwrap();
    let tensors: Weights =
        vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let vb = animatelcm::train::builder(&[&tensors], &Compute::exact(&Device::Cpu));
    let unet = animatelcm::models::unet::UNet::new(&config, &vb).unwrap();
    let (clean, noise) = (drawn("heart.clean", &[3, 4, 8, 8]), drawn("heart.noise", &[3, 4, 8, 8]));
    let at = PerImage::new(vec![schedule().level(500).unwrap()], 3, &Device::Cpu);
    let x = at.add_noise(&clean, &noise).unwrap();
    let context = drawn("heart.context", &[1, 5, 12]);
    let input = animatelcm::models::unet::UNetInput {
        timestep: 0.0,
        frames: 3,
        context: &context,
        motion_norm: MotionNorm::PerFrame,
        injection: &animatelcm::models::unet::Injection::default(),
        stop: &Stop::default(),
    };
    let mut optimizer = AdamW::new(0.0);
    let pace = Pace { rate: 1e-2, warmup: 10, steps: 250, floor: 0.02 };
    let (mut first, mut last) = (0.0, f64::INFINITY);
    for step in 0..250 {
        let y = unet.forward_with_timesteps(&x, &at.timesteps(), &input).unwrap();
        let loss = Loss::Mse.of(&y, &noise).unwrap();
        last = scalar(&loss);
        if step == 0 {
            first = last;
        }
        let mut found = gradients(&mut loss.backward().unwrap(), &vars).unwrap();
        clip(&mut found, 1.0).unwrap();
        optimizer.step(&vars, &found, pace.at(step)).unwrap();
    }
    assert!(first > 0.5 && last < 0.01, "from {first} to {last}");
}

#[test]
fn trained_files_have_published_names() {
    for name in golden_names("names/motion_adapter.txt") {
        let written = animatediff_name(&name);
        assert!(
            golden_names("names/motion_animatelcm.txt").contains(&written),
            "{name}: {written}"
        );
    }
    let factors = lora(&tiny_weights(false), false);
    let kohya = factors
        .to_kohya(
            &factors.vars().iter().map(|(k, v)| (k.clone(), v.as_detached_tensor())).collect(),
        )
        .unwrap();
    assert_eq!(kohya.len(), 3 * factors.vars().len() / 2);
    assert!(kohya.contains_key(
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight"
    ));
    assert!(kohya.contains_key("lora_unet_down_blocks_0_downsamplers_0_conv.alpha"));
}

/// The weights' names of a list.
fn golden_names(list: &str) -> Vec<String> {
    let text = std::fs::read_to_string(golden::path(list)).unwrap();
    let names = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let first = names.filter_map(|line| line.split_whitespace().next());
    first.filter(|name| !name.contains("pos_embed")).map(str::to_owned).collect()
}
