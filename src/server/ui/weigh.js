// Weights of words in a prompt.

/// Ctrl with an arrow makes the selected words, or the word at the caret, stronger or weaker by 0.1.
export function weigh(event) {
  if (!(event.ctrlKey || event.metaKey) || !['ArrowUp', 'ArrowDown'].includes(event.key)) return;
  event.preventDefault();
  const area = event.target;
  const { value } = area;
  let [from, to] = [area.selectionStart, area.selectionEnd];
  const around = /^\(([^()]*):(-?\d*\.?\d+)\)$/;
  if (from === to) {
    // The group around the caret, or the word.
    const open = value.lastIndexOf('(', from - 1),
      close = value.indexOf(')', from);
    if (open >= 0 && close >= 0 && around.test(value.slice(open, close + 1))) [from, to] = [open, close + 1];
    else {
      while (from > 0 && /[^\s,()[\]]/.test(value[from - 1])) from -= 1;
      while (to < value.length && /[^\s,()[\]]/.test(value[to])) to += 1;
    }
  } else {
    while (from < to && value[from] === ' ') from += 1;
    while (to > from && value[to - 1] === ' ') to -= 1;
    // The words of a group that was weighed before.
    const tail = /^:-?\d*\.?\d+\)/.exec(value.slice(to));
    if (value[from - 1] === '(' && tail) [from, to] = [from - 1, to + tail[0].length];
  }
  if (from === to) return;
  const [, words = value.slice(from, to), before = '1'] = around.exec(value.slice(from, to)) ?? [];
  const weight = Math.max(0, Math.round((Number(before) + (event.key === 'ArrowUp' ? 0.1 : -0.1)) * 100) / 100);
  const text = weight === 1 ? words : `(${words}:${weight})`;
  area.setSelectionRange(from, to);
  if (!document.execCommand('insertText', false, text)) area.setRangeText(text, from, to, 'end');
  const inside = weight === 1 ? from : from + 1;
  area.setSelectionRange(inside, inside + words.length);
  area.dispatchEvent(new Event('input', { bubbles: true }));
}
