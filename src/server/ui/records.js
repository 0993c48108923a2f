// What is known of the jobs, and how it is said.

/// Records by id, and what only events tell of them: step, seconds left, preview, warnings.
export const records = new Map();
export const live = new Map();

/// The records that pass a test, the newest first.
export function sorted(test) {
  return [...records.values()].filter(test).sort((a, b) => (a.id < b.id ? 1 : -1));
}

/// A time in words.
export function seconds(count) {
  if (count < 1.5) return 'a second';
  if (count < 90) return `${Math.round(count)} seconds`;
  if (count < 5400) return `${Math.round(count / 60)} minutes`;
  return `${Math.round(count / 3600)} hours`;
}

/// Progress in whole percent.
export const percent = record => Math.floor(100 * Math.min(1, record.progress ?? 0));
export const hasEnded = ({ status }) => status !== 'queued' && status !== 'running';
export const promptOf = ({ job }) => {
  const { prompt } = job ?? {};
  const text = typeof prompt === 'string' ? prompt : (prompt?.text ?? '');
  return text.trim() || Object.values(prompt?.travel ?? {}).join(' → ') || 'without a prompt';
};
export const seedOf = ({ job }) => job?.sampling?.seed;
export const formatOf = record => record.output?.format ?? record.format ?? 'mp4';

/// What a job is at.
export function progressText(record) {
  if (record.status === 'queued') return record.position ? `Waiting, position ${record.position}` : 'Waiting';
  const { phase, step, steps, eta } = live.get(record.id) ?? {};
  const doing = phase ?? (step ? `step ${step}/${steps}` : percent(record) ? 'running' : 'starting');
  const parts = [doing, `${percent(record)} %`];
  const left = eta === undefined ? record.eta_seconds : eta;
  if (left >= 1) parts.push(`about ${seconds(left)} left`);
  return parts.join(' · ');
}

/// Size, settings and cost of a clip in one line.
export function facts(record) {
  const { job, output, status, cached } = record;
  const { width, height, frames } = { ...job?.size, ...live.get(record.id)?.size, ...output };
  const { sampler = 'lcm', steps = 4 } = job?.sampling ?? {};
  const parts = [];
  if (width && height) parts.push(`${width}×${height}`);
  if (frames) parts.push(`${frames} frames`);
  parts.push(`${steps} ${steps === 1 ? 'step' : 'steps'}`, sampler);
  if (job?.models?.model) parts.push(job.models.model);
  if (output) parts.push(`${formatOf(record)}, ${size(output.bytes)}`);
  if (cached) parts.push('cached');
  else if (output?.job_seconds) parts.push(`made in ${seconds(output.job_seconds)}`);
  if (status === 'cancelled') parts.push('cancelled');
  return parts.join(' · ');
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/// Takes a record over the one that is known; one that was read before the job ended comes too late.
export function take(record) {
  const known = records.get(record.id);
  if (known && hasEnded(known) && !hasEnded(record)) return known;
  records.set(record.id, { ...known, ...record });
  return records.get(record.id);
}

/// An error of the server in a sentence.
export function explain({ message, hint, code, status, wait }) {
  if (status === 429) {
    const when = wait ? `in about ${seconds(wait)}` : 'later';
    return `The queue is full. Try again ${when}; the form stays as it is.`;
  }
  if (code === 'draining') return 'The server is being stopped. Try again when it is back; the form stays as it is.';
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return hint ? `${text}: ${hint}` : text;
}
