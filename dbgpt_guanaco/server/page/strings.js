// Every word the page shows, in both languages. {name} is filled in by `Language.text`.

export const STRINGS = {
  en: {
    apiKey: 'API key',
    apiKeyHint: 'Only if the server asks for one. Kept in this tab, gone when you close it.',
    answer: 'Answer',
    away: 'Server is away, trying again…',
    badSetting: 'A setting is out of range: {name}.',
    busy: '{running} of {slots} slots in use · {waiting} waiting',
    close: 'Close settings',
    code: 'code',
    context: 'up to {tokens} tokens of context',
    conversation: 'Conversation',
    copied: 'Copied',
    copy: 'Copy',
    copyFailed: 'Copying failed. Select the text and copy it by hand.',
    cutShort: 'The connection ended before the answer did.',
    draining: 'The server is shutting down',
    emptyHint: 'Your messages go to this server only. This tab forgets them when you close it.',
    emptyLead: 'What would you like to know?',
    failed: 'The answer failed',
    finished: 'Answer finished.',
    firstToken: 'first token {seconds} s',
    idle: 'Ready · {slots} slots free',
    idleOne: 'Ready · 1 slot free',
    inLine: 'Waiting',
    jumpToEnd: 'Go to the end',
    keyNeeded: 'The server asks for an API key: enter it in the settings.',
    keyWrong: 'The server does not know this API key: correct it in the settings.',
    kvCache: 'KV cache in use',
    length: 'Ended at the token limit.',
    loading: 'Loading the model: {stage}{counted}, {seconds} s so far',
    looking: 'Looking for the server…',
    maxTokens: 'Max tokens',
    message: 'Message',
    messageHint: 'Write a message',
    minP: 'Min P',
    model: 'Model',
    newConversation: 'New conversation',
    noModel: 'no model',
    noModelYet: 'There is no model to ask yet.',
    notKept: 'This conversation is too long to survive a reload.',
    odd: 'Server says: {status}',
    ofSlots: '{running} of {slots}',
    otherLanguage: '中文',
    prefixHits: 'Prompt tokens found in the cache',
    question: 'You',
    rate: '{rate} tokens/s',
    repetitionPenalty: 'Repetition penalty',
    reset: 'Clear these settings',
    retry: 'Retry',
    running: 'Running',
    seed: 'Seed',
    send: 'Send',
    settings: 'Settings',
    stop: 'Stop',
    stopHint: 'One per line. Write \\n for a line break.',
    stopStrings: 'Stop strings',
    stopped: 'Stopped.',
    systemPrompt: 'System prompt',
    temperature: 'Temperature',
    token: '1 token',
    tokens: '{tokens} tokens',
    tokensPerSecond: 'Tokens per second',
    topK: 'Top K',
    topP: 'Top P',
    unreachable: 'The server cannot be reached.',
    unreadable: 'The server sent something this page cannot read.',
    unsetHint: 'An empty field is not sent: the server then uses its own value. Without a limit of yours an answer ends at 1,024 tokens.',
    vitals: 'Server status',
    waiting: 'Waiting for the first token · {seconds} s',
    waitingInLine: 'Waiting for the first token · {waiting} in line · {seconds} s',
  },
  zh: {
    apiKey: 'API 密钥',
    apiKeyHint: '仅在服务器要求时填写。只保存在此标签页中，关闭后即清除。',
    answer: '回答',
    away: '无法连接服务器，正在重试…',
    badSetting: '设置超出范围：{name}。',
    busy: '{slots} 个槽位已用 {running} 个 · {waiting} 个排队',
    close: '关闭设置',
    code: '代码',
    context: '上下文最多 {tokens} 个 token',
    conversation: '对话',
    copied: '已复制',
    copy: '复制',
    copyFailed: '复制失败，请手动选择文本复制。',
    cutShort: '回答尚未结束，连接已断开。',
    draining: '服务器正在关闭',
    emptyHint: '消息只会发送到此服务器，关闭标签页后即清除。',
    emptyLead: '想了解点什么？',
    failed: '回答出错',
    finished: '回答完毕。',
    firstToken: '首个 token {seconds} 秒',
    idle: '就绪 · {slots} 个槽位空闲',
    idleOne: '就绪 · 1 个槽位空闲',
    inLine: '排队',
    jumpToEnd: '跳到末尾',
    keyNeeded: '服务器需要 API 密钥，请在设置中填写。',
    keyWrong: '服务器不认识此 API 密钥，请在设置中更正。',
    kvCache: 'KV 缓存占用',
    length: '已达到 token 上限。',
    loading: '正在加载模型：{stage}{counted}，已用 {seconds} 秒',
    looking: '正在寻找服务器…',
    maxTokens: '最大 token 数',
    message: '消息',
    messageHint: '输入消息',
    minP: 'Min P',
    model: '模型',
    newConversation: '新对话',
    noModel: '无模型',
    noModelYet: '暂时没有可用的模型。',
    notKept: '对话过长，刷新页面后将无法恢复。',
    odd: '服务器状态：{status}',
    ofSlots: '{running} / {slots}',
    otherLanguage: 'English',
    prefixHits: '提示词 token 的缓存命中率',
    question: '你',
    rate: '{rate} token/秒',
    repetitionPenalty: '重复惩罚',
    reset: '清空以上设置',
    retry: '重试',
    running: '运行中',
    seed: '随机种子',
    send: '发送',
    settings: '设置',
    stop: '停止',
    stopHint: '每行一个，换行符写作 \\n。',
    stopStrings: '停止字符串',
    stopped: '已停止。',
    systemPrompt: '系统提示词',
    temperature: '温度',
    token: '1 个 token',
    tokens: '{tokens} 个 token',
    tokensPerSecond: '每秒 token 数',
    topK: 'Top K',
    topP: 'Top P',
    unreachable: '无法连接服务器。',
    unreadable: '服务器返回了无法识别的内容。',
    unsetHint: '留空的字段不会发送，由服务器决定取值。未设上限时，回答最多 1024 个 token。',
    vitals: '服务器状态',
    waiting: '等待首个 token · {seconds} 秒',
    waitingInLine: '等待首个 token · {waiting} 个请求排队 · {seconds} 秒',
  },
};

export class Language {
  /** @param {string} code "en" or "zh" */
  constructor(code) {
    this.code = code in STRINGS ? code : 'en';
  }

  /** The language the reader's browser asks for. */
  static ofBrowser() {
    return new Language(navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en');
  }

  get other() {
    return new Language(this.code === 'en' ? 'zh' : 'en');
  }

  /** For the lang attribute. */
  get tag() {
    return this.code === 'zh' ? 'zh-CN' : 'en';
  }

  text(key, values = {}) {
    return STRINGS[this.code][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  }

  /** Put the words into every element that names one with data-text, -label or -placeholder. */
  apply(root) {
    for (const element of root.querySelectorAll('[data-text]')) {
      element.textContent = this.text(element.dataset.text);
    }
    for (const element of root.querySelectorAll('[data-label]')) {
      element.setAttribute('aria-label', this.text(element.dataset.label));
      if (element.matches('button')) element.title = this.text(element.dataset.label);
    }
    for (const element of root.querySelectorAll('[data-placeholder]')) {
      element.placeholder = this.text(element.dataset.placeholder);
    }
  }
}
