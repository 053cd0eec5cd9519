// Copying text, also where the page is served over plain HTTP and the clipboard API is missing.

const TOLD_MS = 1500;

/** Copy, and say so on the button. @returns {Promise<boolean>} whether the text was copied */
export async function copyWith(button, text, language) {
  if (!(await copyText(text))) return false;
  button.textContent = language.text('copied');
  setTimeout(() => language.apply(button.parentElement), TOLD_MS);
  return true;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const area = document.createElement('textarea');
  area.className = 'hidden';
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand('copy');
  area.remove();
  focused?.focus();
  return isCopied;
}
